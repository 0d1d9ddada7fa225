"""2,000 rollout workers join one controller on this machine: time, memory, messages, file-system calls.

    python -m benchmarks.membership --engines 2000 --out benchmarks/results/membership.json

The members, their sockets (ZeroMQ with CURVE, on loopback), their files, the controller's `Service`,
`Mailboxes` and state machine are the real ones; what an engine and a trainer would do is a wait. Two
members serve as store shards without a journal. One worker runs under strace, if that is installed, and
every system call of its process on the run folder is counted. `benchmarks/state_machine.py` takes the state
machine alone through larger runs.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import zmq

from benchmarks.membership.controller import controller
from benchmarks.membership.machine import cluster
from benchmarks.membership.workers import stores, workers
from verst.runtime.run.folder import RunFolder


def main() -> None:
    """Measures, or is one of the processes that are measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--as", dest="role", choices=["controller", "stores", "workers"])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--began", type=float)
    parser.add_argument("--first", type=int)
    parser.add_argument("--last", type=int)
    options = parser.parse_args()
    if options.role == "controller":
        asyncio.run(controller(RunFolder(options.run), options.engines, options.began, options.out))
    elif options.role == "stores":
        asyncio.run(stores(RunFolder(options.run)))
    elif options.role == "workers":
        asyncio.run(
            workers(RunFolder(options.run), options.engines, options.began, options.first, options.last)
        )
    else:
        figures = {
            "cluster": cluster(options.engines, options.processes),
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "gpus": 0},
            "versions": {
                "python": platform.python_version(),
                "libzmq": zmq.zmq_version(),
                **{name: importlib.metadata.version(name) for name in ("pyzmq", "msgspec", "verst")},
            },
            "date": datetime.date.today().isoformat(),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
