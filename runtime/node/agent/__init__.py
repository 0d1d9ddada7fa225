"""The node agent: starts, watches and ends the processes of one node. The launcher starts nothing else.

Run it with `python -m verst.runtime.node.agent --run DIR --group trainer --node 0 --generation 0`.

Read `agent.py`, the loop, first. It calls these parts: `starting.py` starts processes, `process_ends.py`
decides what the end of a process means, `failing.py` ends the run after a failure, `stopping.py` handles
requests to stop, `hangs.py` ends processes that hang, `folder_watch.py` reads the run folder, and
`log_limits.py` keeps logs small. For the dashboard, `machine_figures.py` writes how busy and full the machine is,
and `stacks.py` takes the stack of a process on request. All share the state in `this_node.py`. A part ends the loop
by returning an `Outcome` (`outcome.py`).
"""

from verst.runtime.node.agent.agent import EARLY_EXIT_S, GRACE_S, Agent
from verst.runtime.node.agent.outcome import Outcome

__all__ = ["EARLY_EXIT_S", "GRACE_S", "Agent", "Outcome"]
