"""One trainer GPU and one engine GPU on real runs: does it learn, how fast is each phase, how close are the two.

    python benchmarks/gpu/one_trainer_one_engine.py --out results/ quickstart --model models/smollm2-135m
    python benchmarks/gpu/one_trainer_one_engine.py --out results/ tiny-moe --model models/tiny-moe

Runs the recipe through `verst run` on a machine with two GPUs (NCCL, bf16) and writes one JSON file with the
reward curve, seconds per phase, tokens per second and the log-probability difference between engine and
trainer. Correctness comes first: the first weight round of a short run compares every engine tensor.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "recipes"
# Kernels that need no download of prebuilt cubins; a normal installation can leave these out.
ENGINE = (
    "rollout.sglang.attention-backend=triton",
    "rollout.sglang.grammar-backend=none",
    "rollout.sglang.mem-fraction-static=0.5",
    "rollout.sglang.cuda-graph-max-bs=64",
)


def main() -> None:
    """Runs one recipe and writes its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", choices=["quickstart", "tiny-moe"])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    folder = options.runs.absolute() / f"gpu-{options.recipe}"
    seconds = run(options, folder)
    figures = summarise(folder) | {"wall_seconds": seconds, "overrides": options.overrides, **machine()}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"one_trainer_one_engine_{options.recipe}.json"
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "curve"}, indent=2))


def run(options: argparse.Namespace, folder: Path) -> float:
    """`verst run` to its end; raises CalledProcessError when it fails."""
    model = options.model.absolute()
    began = datetime.datetime.now()
    places = (
        f"model.path={model}",
        f"data.train.path={model}/train.jsonl",
        f"data.eval.path={model}/eval.jsonl",
        "model.dtype=bfloat16",
        f"runs_dir={folder.parent}",
        f"name={folder.name}",
        *(
            (f"algorithm.stages.0.data.path={model}/demonstrations.jsonl",)
            if options.recipe == "tiny-moe"
            else ()
        ),
    )
    command = [sys.executable, "-m", "verst.launcher.cli", "run", str(RECIPES / f"{options.recipe}.yaml")]
    subprocess.run([*command, *places, *ENGINE, *options.overrides], check=True, timeout=540)
    return (datetime.datetime.now() - began).total_seconds()


def summarise(folder: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    rounds = [line for line in lines if line["kind"] == "sync"]
    evals = {line["when"]: line["reward"] for line in lines if line["kind"] == "eval"}
    warm = steps[5:] or steps  # the first steps load kernels
    phases = sorted({phase for line in warm for phase in line["seconds"]})
    tenth = max(1, len(steps) // 10)
    return {
        "steps": len(steps),
        "held_out": evals,
        "reward_first_tenth": statistics.fmean(line["reward"] for line in steps[:tenth]),
        "reward_last_tenth": statistics.fmean(line["reward"] for line in steps[-tenth:]),
        "median_seconds": {
            phase: statistics.median(line["seconds"].get(phase, 0.0) for line in warm) for phase in phases
        },
        "median_sync_seconds": {
            phase: statistics.median(line["seconds"][phase] for line in rounds)
            for phase in rounds[0]["seconds"]
        },
        "bytes_per_sync": rounds[-1]["bytes"],
        "checked_tensors_per_round": sorted({line["checked_tensors"] for line in rounds}),
        "median_trained_tokens_per_s": statistics.median(line["tokens_per_s"] for line in warm),
        "median_generated_tokens_per_s": statistics.median(line["rollout_tokens_per_s"] for line in warm),
        "logprob_max_diff": {
            "median": statistics.median(line["logprob_max_diff"] for line in steps),
            "largest": max(line["logprob_max_diff"] for line in steps),
        },
        "kl_rollout_k3_median": statistics.median(line["kl_rollout_k3"] for line in steps),
        "routing_wrong": sum(line.get("routing_wrong", 0.0) for line in steps),
        "routing_would_differ_mean": statistics.fmean(
            line.get("routing_would_differ", 0.0) for line in steps
        ),
        "curve": [[line["step"], line["reward"]] for line in steps],
    }


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    import torch

    names = ("torch", "megatron-core", "sglang", "transformers", "verst")
    return {
        "machine": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
