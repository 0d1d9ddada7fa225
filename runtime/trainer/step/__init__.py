"""The parts of a training step; `trainer.py` above puts them together.

In the order of a step: `microbatches.py` collates the plan's micro-batches, `fixed_policies.py` computes old
and reference log-probabilities (`reference.py` holds the reference weights), `forward.py` runs the pipeline,
`logprobs.py` computes log-probabilities at the trained positions, and `objective.py` turns them into the loss
and its metrics.

`shown.py` picks out single samples to show, `response_values.py` maps values back to response tokens,
`phases.py` times the phases, and `memory.py` moves the rank's memory off its device while engines use it.
"""
