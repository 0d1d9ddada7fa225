"""Whether a process failed by itself or because another had gone before.

When a rank dies, the others of its world fail within moments: their collectives find the connection closed. They
must not be taken for the cause, whichever of them is noticed first.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

# What PyTorch, gloo, NCCL, ZeroMQ's users and our own calls say when the other side has gone.
_GONE = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|broken pipe|socket closed|peer closed"
    r"|ncclRemoteError|remote process exited|ncclSystemError|NCCL communicator was aborted"
    r"|watchdog caught collective|collective operation timeout|TCPStore.*(fail|timed out)|failed to recv"
    r"|memberlost|\bis lost: |its (worker|process) is gone|heartbeat of .* (is missing|stopped)",
    re.IGNORECASE,
)
# Nothing that another process does to a connection kills one like this.
_OWN_DEATHS = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
_LINES = 12  # of the log's end; what stands further up may be about something that went well in the end


def follows_another(code: int | None, last_lines: Sequence[str]) -> bool:
    """Whether the end of a process looks like the echo of another's: "connection reset by peer" and the like."""
    if code in _OWN_DEATHS:
        return False
    return any(_GONE.search(line) for line in last_lines[-_LINES:])
