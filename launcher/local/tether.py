"""Makes a node agent end with the launcher that started it: `python -m verst.launcher.local.tether PARENT COMMAND…`.

torchx gives every replica a session of its own, so the agents would outlive a launcher that is killed with
SIGKILL. With this, the kernel sends SIGTERM to the command when the parent dies, and the agent ends its
processes as for any SIGTERM.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; survives exec


def main() -> None:
    """Asks the kernel for SIGTERM at the parent's death, then replaces this process with the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"the launcher (process {parent}) ended before {command[0]} started")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
