"""The messages between the members of a run: their calls, and the types that these carry. Imports no torch.

`apis.py` lists the calls of each kind of member; read it first. `sample.py` has samples and prompt groups,
`jobs.py` the prompts and results of rollout workers, `step_plan.py` the plan and report of a training step,
`weight_round.py` the messages of a weight sync. `model_config.py` is the recipe's `model` section, which
trainer and engines share.
"""
