"""The controller: the one process that decides what a run does, and when.

`shell.py` is the loop: it takes an event, asks the state machine and carries out its commands. `events.py` lists
the events and the commands.

The state machine decides. It is pure: it has no clocks, sockets or files. `state.py` turns events into commands,
and `loop_state.py` knows what the run needs next. They use `groups.py` (prompt groups and their staleness) with
`in_order.py`, `evaluations.py`, `fleet.py` (the engines) with `askers.py`, `dispatch.py` (which engine gets which
prompts) and `turns.py` (the colocated layout). `batch_plan.py` and `critical_path.py` are pure, too.

The shell carries out. `training.py` runs a step, `weight_rounds.py` a weight round, `saving.py` a checkpoint or the
export, and `turn_calls.py` passes the GPUs; they run as tasks of `background.py`. They call the other processes
through `trainers.py`, `stores.py` and `engine_calls.py`. `service.py` answers the rollout workers' calls, and
`prompts.py` makes their jobs. `reporting.py`, `measure.py` and `shown.py` write what people see.

`__main__.py` is the process: it waits for the other processes, runs the loop and tells how the run ended.
`patience.py` ends a run that waits too long for engines, and `config.py` holds the parts of the recipe that the
controller reads.
"""
