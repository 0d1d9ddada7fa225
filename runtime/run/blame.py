"""Decides whether a process failed by itself or because another process had failed before.

When a rank dies, the other ranks of its world fail moments later, because their collectives find a connection
closed. They must not be taken for the cause, even if one of them is noticed first.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

# Messages of PyTorch, gloo, NCCL, users of ZeroMQ and our own calls when the other side has gone.
_GONE = re.compile(
    r"connection (was )?(reset|closed|refused|aborted)|broken pipe|socket closed|peer closed"
    r"|ncclRemoteError|remote process exited|ncclSystemError|NCCL communicator was aborted"
    r"|watchdog caught collective|collective operation timeout|TCPStore.*(fail|timed out)|failed to recv"
    r"|memberlost|\bis lost: |its (worker|process) is gone|heartbeat of .* (is missing|stopped)",
    re.IGNORECASE,
)
# A closed connection never kills a process with one of these signals.
_OWN_DEATHS = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}
_LINES = 12  # at the end of the log; earlier lines may be about problems that were solved


def follows_another(code: int | None, last_lines: Sequence[str]) -> bool:
    """Whether a process seems to have ended because of another: "connection reset by peer" and the like."""
    if code in _OWN_DEATHS:
        return False
    return any(_GONE.search(line) for line in last_lines[-_LINES:])
