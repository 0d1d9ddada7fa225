"""The quickstart on this machine over several seeds: held-out score before and after, time, memory, agreement.

    python benchmarks/quickstart.py --seeds 1234 1 2 --out benchmarks/results/quickstart.json
    python benchmarks/quickstart.py --seeds 1234 --out benchmarks/results/quickstart_at_0.7.json \\
        --overrides rollout.sampling.temperature=0.7 algorithm.steps=4 checkpoint.interval=4

Runs `recipes/quickstart.yaml` through `verst run` (the model folder comes from `verst fetch smollm2-135m`),
one seed after another, and samples the memory of all processes of the run (proportional set size, so shared
pages count once). The second line asks whether engine and trainer agree at another temperature than 1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

RECIPE = Path(__file__).parents[1] / "recipes/quickstart.yaml"
AGREEMENT = ("logprob_max_diff", "logprob_mean_diff", "kl_rollout_k3")


def main() -> None:
    """Runs every seed and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--overrides", nargs="*", default=[], help="of the recipe, key=value")
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["seeds"] if options.out.exists() else []
    for seed in options.seeds:
        rows = [row for row in rows if row["seed"] != seed] + [
            run(seed, options.runs.absolute(), options.overrides)
        ]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures(rows, options.overrides), indent=2) + "\n")
        print(json.dumps(rows[-1]))


def run(seed: int, runs: Path, overrides: list[str]) -> dict[str, Any]:
    """One run; raises CalledProcessError when it fails."""
    name = f"quickstart-seed-{seed}-{int(time.time())}"
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "run", str(RECIPE)]
    began = time.monotonic()
    own = [f"runs_dir={runs}", f"name={name}", f"algorithm.seed={seed}"]
    process = subprocess.Popen([*command, *own, *overrides])
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(2)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        "seed": seed,
        "wall_seconds": time.monotonic() - began,
        "peak_gib": peak / 2**30,
        **read(runs / name),
    }


def memory_of(pid: int) -> int:
    """Bytes of a process and all below it."""
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for one in family:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def read(folder: Path) -> dict[str, Any]:
    """What the run wrote about itself."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    evals = {line["when"]: line["reward"] for line in lines if line["kind"] == "eval"}
    return {
        "held_out_before": evals["before"],
        "held_out_after": evals["after"],
        "reward_first": steps[0]["reward"],
        "reward_last": steps[-1]["reward"],
        "steps": len(steps),
        "median_step_seconds": statistics.median(line["seconds"]["step"] for line in steps),
        # Over all steps; engine and trainer hold the same weights in each.
        **{name: max(line[name] for line in steps) for name in AGREEMENT},
    }


def figures(rows: list[dict[str, Any]], overrides: list[str]) -> dict[str, Any]:
    """The rows with where and with what they were measured."""
    names = ("torch", "megatron-core", "sglang", "transformers", "verst")
    return {
        "seeds": rows,
        "overrides": overrides,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "gpus": 0},
        "versions": {name: importlib.metadata.version(name) for name in names},
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
