"""The controller: the one process that decides what a run does, and when.

`shell.py` is the loop: it takes an event, asks the state machine (`state_machine/`) and carries out its commands.
`training.py` runs a step, which `batch_plan.py` plans, `weight_rounds.py` a weight round, `saving.py` a checkpoint
or the export, and `turn_calls.py` passes the GPUs; they run as tasks of `background.py`. They call the other
processes through `trainers.py`, `stores.py` and `engine_calls.py`. `service.py` answers the rollout workers' calls,
and `prompts.py` makes their jobs. `reporting/` writes what people see.

`__main__.py` is the process: it waits for the other processes, runs the loop and tells how the run ended.
`earlier_groups.py` takes over the groups of earlier lives, and `data_record.py` knows which rows they were made from.
`patience.py` ends a run that waits too long for engines, and `config.py` holds the parts of the recipe that the
controller reads.
"""
