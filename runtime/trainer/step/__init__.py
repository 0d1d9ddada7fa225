"""The parts of a training step; `trainer.py` above puts them together.

In the order of a step: `microbatches.py` collates the plan's micro-batches, `scoring.py` scores their tokens in passes
before the trained one (`frozen_weights.py` holds the reference), `forward.py` runs the pipeline, `logprobs.py` computes
log-probabilities at the trained positions, and `objective.py` sums the losses of the terms (`terms.py`) and the figures
(`figures.py`). `token_hooks.py` calls the functions that a recipe names.

`shown.py` picks out single samples to show, `response_values.py` maps values back to response tokens,
`phases.py` times the phases, and `memory.py` moves the rank's memory off its device while engines use it.
"""
