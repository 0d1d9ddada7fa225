"""Starts all processes on this machine and collects their figures; strace counts one worker's file-system calls."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.membership.workers import JOIN_S
from verst.runtime.actors import create_keys
from verst.runtime.run.folder import RunFolder

ROOT = Path(__file__).parents[2]
START_S = 15.0  # for the processes to read their modules


def cluster(engines: int, processes: int) -> dict[str, Any]:
    """All processes on this machine, until the controller has its figures."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as ending:
        folder = RunFolder(Path(scratch) / "run")
        folder.create()
        folder.start_generation()
        create_keys(folder)
        report, trace = Path(scratch) / "report.json", Path(scratch) / "strace.txt"

        common = [
            *("--run", str(folder.root), "--began", str(time.monotonic() + START_S)),
            *("--engines", str(engines), "--out", str(report)),
        ]

        def start(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "benchmarks.membership", *map(str, arguments), *common],
                cwd=ROOT,
            )
            ending.callback(end, process)
            return process

        first_process = start("--as", "controller")
        start("--as", "stores")
        shares = [1 + (engines - 1) * n // processes for n in range(processes + 1)]
        for first, last in itertools.pairwise(shares):
            start("--as", "workers", "--first", first, "--last", last)
        tracing = ("strace", "-f", "-y", "-ttt", "-e", "trace=%file,%desc", "-o", str(trace))
        traced = shutil.which("strace") is not None
        start("--as", "workers", "--first", 0, "--last", 1, before=tracing if traced else ())
        while not report.exists():
            if first_process.poll() is not None:
                raise RuntimeError("the controller's process failed")
            time.sleep(0.5)
        figures = json.loads(report.read_text())
        window = figures.pop("steady_seconds")
        figures["worker_calls_per_second"] = calls_on(folder.root, trace, *window) if traced else None
        return {"engines": engines, "joining_seconds": JOIN_S, **figures}


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and, when it is strace, the one under it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
    process.wait()


def calls_on(folder: Path, trace: Path, began: float, ended: float) -> dict[str, float]:
    """System calls per second on files below `folder`, by name, of strace's output in a time window."""
    line = re.compile(r"^\d+ +([\d.]+) (\w+)\((.*)")
    calls: Counter[str] = Counter()
    for text in trace.read_text(errors="replace").splitlines():
        match = line.match(text)
        if match and began <= float(match[1]) < ended and str(folder) in match[3]:
            calls[match[2]] += 1
    rates = {name: count / (ended - began) for name, count in sorted(calls.items())}
    return {**rates, "all": sum(rates.values())}
