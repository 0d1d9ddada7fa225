"""A trainer rank: Megatron-Core's model, optimizer and schedules, fed with the controller's step plans.

`trainer.py` is the step; `rank.py` is the process around it. `arguments.py` turns a recipe into Megatron's
configuration, `model.py` builds the model, `batch.py` collates, `forward.py` runs the pipeline, `logprobs.py` and
`objective.py` make the loss, `checkpoint.py` saves all of it. Routing replay: `routing_share.py` is what a rank gets of
it, `routing_replay.py` a model's replay, `replayed_routing.py` a router's, `routing_probe.py` what it changes;
`selection_share.py`, `selection_replay.py`, `replayed_selection.py` and `sparse_attention.py` the same of sparse
attention's choices.
`cpu_adapter.py` is the only file that knows of machines without a GPU.
"""
