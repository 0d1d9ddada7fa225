"""What an evaluation beside the training costs: the steps after an evaluated one against the others, in one run.

    python -m benchmarks.evaluation_cost --recipe recipes/quickstart.yaml --out cost.json algorithm.steps=40

Runs a recipe that has one evaluation set through `verst run`; whatever follows are overrides. Or it reads a run that
there is: `--folder runs/my-run`. An evaluation of step v is made beside step v + 1, and the weight round that waits for
it belongs to step v + 2. So these two count as "with", the others as "without"; that needs an interval of 4 or more.
The first two steps are left out, because engines warm up in them.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_WARM = 2  # steps that are left out


def cost(lines: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run, from the lines of its metrics.jsonl.

    `seconds_an_evaluation`: what two steps with it take longer than two without, in the median. `share`: of that in the
    steps of an interval. Raises ValueError if there are no steps of both kinds.
    """
    lines = list(lines)
    evaluated = sorted({int(x["step"]) for x in lines if x["kind"] == "eval" and x["when"] == "during"})
    steps = {int(x["step"]): float(x["seconds"]["step"]) for x in lines if x["kind"] == "step"}
    steps = {number: seconds for number, seconds in sorted(steps.items())[_WARM:]}
    pairs = [steps[v + 1] + steps[v + 2] for v in evaluated if v + 1 in steps and v + 2 in steps]
    near = {v + after for v in evaluated for after in (1, 2)}
    others = [seconds for number, seconds in steps.items() if number not in near]
    if not pairs or not others:
        raise ValueError("there are no steps with and without an evaluation: use an interval of 4 or more")
    without = statistics.median(others)
    extra = statistics.median(pairs) - 2 * without
    intervals = [b - a for a, b in itertools.pairwise(evaluated)]
    interval = min(intervals, default=None)
    return {
        "evaluations": len(pairs),
        "steps_without": len(others),
        "median_step_seconds_without": without,
        "spread_without": statistics.pstdev(others),
        "median_two_steps_seconds_with": statistics.median(pairs),
        "seconds_an_evaluation": extra,
        "interval": interval,
        "share_of_a_step": None if interval is None else extra / (interval * without),
    }


def read(folder: Path) -> dict[str, Any]:
    """The figures of the run in `folder`."""
    return cost(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())


def main() -> None:
    """Runs or reads, and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--folder", type=Path, help="a run that there is")
    parser.add_argument("--interval", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--out", type=Path, required=True)
    options, overrides = parser.parse_known_args()
    folder = options.folder
    if folder is None:
        name = f"evaluation-cost-{int(time.time())}"
        folder = options.runs.absolute() / name
        own = [
            f"runs_dir={options.runs.absolute()}",
            f"name={name}",
            f"data.eval.interval={options.interval}",
        ]
        command = [
            sys.executable,
            "-P",
            "-m",
            "verst.launcher.cli",
            "run",
            str(options.recipe),
            *own,
            *overrides,
        ]
        subprocess.run(command, check=True)
    figures = read(folder) | {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "overrides": overrides,
        "date": datetime.date.today().isoformat(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
