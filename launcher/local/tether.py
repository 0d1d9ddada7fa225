"""Ties a node agent to the process that launched it: `python -m verst.launcher.local.tether PARENT COMMAND…`.

torchx gives every replica a session of its own, so that a launcher ended by SIGKILL would leave its agents
running for ever. The kernel sends SIGTERM to the command when the parent is gone; the agent then ends its
processes as it does for any SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; survives exec


def main() -> None:
    """Replaces this process by the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"launcher {parent} was gone before {command[0]} started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
