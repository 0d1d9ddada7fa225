"""What a new user waits for: the set-up in a fresh clone, and the start of each command that a login node needs.

    python -P benchmarks/first_five_minutes.py [--without-cache] [--out benchmarks/results/first_five_minutes.json]

Clones this repository's HEAD into a temporary folder and times `make .venv/installed` there, with the cache of wheels
that this machine has, and with `--without-cache` also with an empty one. Then it times each command until its first
line of output, five times, and lists which heavy packages the command's own process has imported.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/first_five_minutes.json"
SETUP_DEADLINE_S, COMMAND_DEADLINE_S = 1800, 120
HEAVY = ("torch", "megatron", "sglang", "transformers")

# Prints the heavy packages that were imported when the command ends.
TRACED = """
import atexit, sys
atexit.register(lambda: print("IMPORTED", *[m for m in {heavy!r} if m in sys.modules], file=sys.stderr))
from verst.launcher.cli import main
sys.argv = ["verst", *{arguments!r}]
main()
"""


def main() -> None:
    """Times set-up and commands, and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--without-cache", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="verst-first-") as folder:
        setup = {}
        if options.without_cache:
            setup["without_cache"] = set_up(Path(folder) / "cold", UV_CACHE_DIR=f"{folder}/cache")
        setup["with_cache"] = set_up(Path(folder) / "warm")
        clone = Path(folder) / "warm"
        figures: dict[str, Any] = {
            "figure": "seconds of the set-up in a fresh clone, and of each command until its first line",
            "setup": setup,
            "commands": {
                " ".join(command).replace(str(clone / "runs/finished"), "RUN"): time_command(clone, command)
                for command in commands(clone)
            },
            "machine": {
                "cores": len(os.sched_getaffinity(0)),
                "platform": platform.platform(),
                "load": os.getloadavg()[0],
            },
            "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def set_up(clone: Path, **environment: str) -> dict[str, float]:
    """Seconds of `make .venv/installed` in a new clone: on the clock, and of all processes together."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    before, began = os.times(), time.monotonic()
    subprocess.run(
        ["make", "--silent", ".venv/installed"],
        cwd=clone,
        env=os.environ | environment,
        check=True,
        timeout=SETUP_DEADLINE_S,
        stdout=sys.stderr,
    )
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": round(time.monotonic() - began, 1), "cpu_s": round(used, 1)}


def commands(clone: Path) -> list[list[str]]:
    """The commands of a login node, on a run folder that has what they read."""
    run = clone / "runs/finished"
    (run / "logs/life-1/trainer/0").mkdir(parents=True)
    (run / "logs/life-1/trainer/0/trainer-0.log").write_text("a line\n")
    (run / "recipe.yaml").write_text((clone / "recipes/quickstart.yaml").read_text())
    (run / "metrics.jsonl").write_text("")
    return [
        ["--help"],
        ["plan", "recipes/quickstart.yaml", "algorithm.stepz=3"],
        ["submit", "recipes/quickstart.yaml", "algorithm.stepz=3"],
        ["status", str(run)],
        ["logs", str(run)],
        ["dash", str(run)],
    ]


def time_command(clone: Path, arguments: list[str]) -> dict[str, Any]:
    """Median seconds until the first line, of five starts, and the heavy packages that were imported."""
    program = TRACED.format(heavy=HEAVY, arguments=arguments)
    seconds, imported = [], ""
    for _ in range(5):
        began = time.monotonic()
        process = subprocess.Popen(
            [".venv/bin/python", "-P", "-c", program],
            cwd=clone,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        seconds.append(time.monotonic() - began)
        if arguments[0] == "dash":
            process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=COMMAND_DEADLINE_S)
        lines = [line for line in (first + rest).splitlines() if line.startswith("IMPORTED")]
        imported = lines[0].removeprefix("IMPORTED").strip() if lines else imported
    return {"first_line_s": round(statistics.median(seconds), 2), "imported": imported.split()}


if __name__ == "__main__":
    main()
