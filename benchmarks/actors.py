"""Verst's actors beside Ray's on the same machine, in turns, in one run.

    python benchmarks/actors.py [--ray-python PATH] [--rounds 3]

Ray is installed for the benchmark alone, in a folder of its own (or PATH is an interpreter that has it). Each round
measures one side after the other: start to first call (a process from nothing: cluster or keys, one actor, one
answer), round trips one at a time, calls a second from one caller and from eight processes at once to one actor, a
64 MiB array as argument (and one that lies in shared memory already: `shared_array`, `ray.put`), the start of 16
actors, and the memory of an idle one. Medians over the rounds, and ratios of the medians (above 1: Verst is better),
go to results/actors.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RAY = "ray==2.60.0"
RATES = ("calls_per_s_one_caller", "calls_per_s_eight_callers", "array_gb_per_s", "shared_array_gb_per_s")


def main() -> None:
    """Runs both sides and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ray-python", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ray_python = options.ray_python or install_ray(Path(folder))
        sides = {
            "verst": [sys.executable, "-P", "-m", "benchmarks.actors_sides.verst_side"],
            "ray": [str(ray_python), "-m", "benchmarks.actors_sides.ray_side"],
        }
        rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        pressure = [cpu_pressure()]
        for _ in range(options.rounds):
            for side, command in sides.items():
                rounds[side].append({"start_to_first_call_s": first_call(command)} | measured(command))
                print(side, json.dumps(rounds[side][-1]), flush=True)
    pressure.append(cpu_pressure())
    medians = {
        side: {key: statistics.median(one[key] for one in found) for key in found[0]}
        for side, found in rounds.items()
    }
    result = {
        "figure": "Verst's actors and Ray's, medians of rounds in turns; ratio above 1: Verst is better",
        "ratio": {key: ratio(key, medians["verst"][key], medians["ray"][key]) for key in medians["ray"]},
        **medians,
        "rounds": rounds,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "cpu_pressure_before_and_after": pressure,
        "versions": {"python": platform.python_version(), "ray": RAY.split("==")[1]}
        | {name: version(name) for name in ("verst", "pyzmq", "msgspec")},
        "date": datetime.date.today().isoformat(),
    }
    path = ROOT / "benchmarks/results/actors.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: result[key] for key in ("ratio", "verst", "ray")}, indent=1))


def cpu_pressure() -> float:
    """Per cent of the last 300 s in which something waited for a core: on a machine of our own about 0 before."""
    return float(Path("/proc/pressure/cpu").read_text().split("avg300=")[1].split()[0])


def install_ray(folder: Path) -> Path:
    """An environment with Ray alone."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "ray")], check=True)
    python = folder / "ray/bin/python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", RAY, "numpy", "psutil"], check=True)
    return python


def first_call(command: list[str]) -> float:
    """Seconds from the start of the process to its first answer."""
    began = time.time()
    return float(_run([*command, "first"]).split()[-1]) - began


def measured(command: list[str]) -> dict[str, Any]:
    """The side's other figures."""
    return json.loads(_run([*command, "measure"]).splitlines()[-1])


def _run(command: list[str]) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=600, check=True
    )
    return done.stdout


def ratio(key: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    return ours / theirs if key in RATES else theirs / ours


if __name__ == "__main__":
    main()
