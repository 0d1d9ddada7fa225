"""The engine process: runs SGLang's server as a child that dies with its parent and does not show its API key in `ps`.

`python -m verst.runtime.rollout.engine.process ARGS…` does the same as `python -m sglang.launch_server ARGS…`. The API
key is passed through the environment, which only the owner can read. Every user of the node can read arguments.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from typing import Any

KEY = "VERST_ENGINE_KEY"
PARENT = "VERST_ENGINE_PARENT"
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when `parent` dies; exits at once if it has died already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(f"the process that started this engine ({parent}) is gone")


def keep_out_of_logs(key: str) -> None:
    """Replaces the key by *** in all log records, because SGLang logs all its arguments at start.

    This is done in the record factory, since log handlers come and go.
    """
    make = logging.getLogRecordFactory()

    def make_without_key(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        if key in str(record.msg):
            record.msg = str(record.msg).replace(key, "***")
        return record

    logging.setLogRecordFactory(make_without_key)


def main(arguments: list[str]) -> None:
    """Serves until the process is killed."""
    die_with_parent(int(os.environ[PARENT]))
    key = os.environ.pop(KEY)  # SGLang's own child processes do not need the key

    from sglang.srt.plugins import load_plugins

    load_plugins()

    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    server_args = prepare_server_args([*arguments, f"--api-key={key}"])  # one word: a key may begin with "-"
    keep_out_of_logs(key)
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main(sys.argv[1:])
