"""The node agent: starts, watches and ends the processes of one node. It is the only thing that the launcher starts.

`python -m verst.runtime.node.agent --run DIR --group trainer --node 0 --generation 0` runs one (`__main__.py`).
Start with `agent.py`, the loop. The parts that it calls: `folder_watch.py` reads what the rest of the run has
decided, `stopping.py` passes on requests to stop, `starting.py` starts processes, `process_ends.py` decides what
the end of one means, `failing.py` ends the run after a failure, `log_limits.py` keeps logs small. They share
`this_node.py` and end the loop with an `outcome.py`.
"""

from verst.runtime.node.agent.agent import EARLY_EXIT_S, GRACE_S, Agent
from verst.runtime.node.agent.outcome import Outcome

__all__ = ["EARLY_EXIT_S", "GRACE_S", "Agent", "Outcome"]
