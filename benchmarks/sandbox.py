"""What the sandbox costs: to open one, and to run a program in it, by each method that this machine has.

    python -P benchmarks/sandbox.py [--runs 20] [--out benchmarks/results/sandbox.json]

Times are milliseconds of the clock and of CPU, of all processes that take part. CPU times are the ones to compare: a
busy machine lengthens the others. Bubblewrap keeps the CPU time of its processes to itself, so there are none for it. A
plain `python -c` of the same program, without a sandbox, is measured beside them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verst.runtime.sandbox.limits import SandboxLimits
from verst.runtime.sandbox.methods import METHODS
from verst.runtime.sandbox.sandbox import Sandbox, problem_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/sandbox.json"
PROGRAM = "print(int(input()) * 7)"
LIMITS = SandboxLimits(seconds=60)


def cpu_ms() -> float:
    """CPU time of this process and of those that have ended below it."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1000 * sum(each.ru_utime + each.ru_stime for each in used)


def measured(action: Callable[[], None], runs: int) -> dict[str, float]:
    """The median time of the clock of an action, and the mean CPU time."""
    clock, before = [], cpu_ms()
    for _ in range(runs):
        began = time.perf_counter()
        action()
        clock.append(1000 * (time.perf_counter() - began))
    return {"ms": round(statistics.median(clock), 1), "cpu_ms": round((cpu_ms() - before) / runs, 1)}


def of_method(method: Any, runs: int) -> dict[str, Any]:
    """Opening a sandbox with one program in it; and each further program, from sandboxes with 1 and with 11."""

    def programs(count: int) -> Callable[[], None]:
        def action() -> None:
            with Sandbox(LIMITS, method=method) as sandbox:
                for _ in range(count):
                    assert sandbox.run(PROGRAM, "6").stdout == "42\n"

        return action

    one, eleven = measured(programs(1), runs), measured(programs(11), max(1, runs // 4))
    if method == "bubblewrap":
        del one["cpu_ms"]
    further = {name: round((eleven[name] - one[name]) / 10, 1) for name in one}
    return {"open_and_run": one, "further_run": further}


def main() -> None:
    """Measures each method and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()

    def plain() -> None:
        command = [sys.executable, "-I", "-S", "-c", PROGRAM]
        subprocess.run(command, input=b"6", stdout=subprocess.DEVNULL, check=True)

    found: dict[str, Any] = {"python": measured(plain, asked.runs)}
    for method in METHODS:
        problem = problem_of(method)
        found[method] = {"problem": problem} if problem else of_method(method, asked.runs)
        print(method, found[method], flush=True)
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    about = {"date": datetime.date.today().isoformat(), "runs": asked.runs, "load": os.getloadavg()[0]}
    asked.out.write_text(json.dumps({**about, "machine": machine, "methods": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
