"""The controller's decisions: a pure state machine, without clocks, sockets or files. Events in, commands out.

`events.py` lists the events and the commands. `machine.py` turns the one into the other, and `loop_state.py` knows
what the run needs next. They use `groups.py` (prompt groups and their staleness) with `in_order.py` and `id_set.py`,
`drops.py` (why groups were dropped), `evaluations.py`, `fleet.py` (the engines) with `askers.py`, `dispatch.py`
(which engine gets which prompts) and `turns.py` (the colocated layout).
"""
