"""Does reinforcement learning survive an engine that routes otherwise than the trainer, with replay and without?

    python benchmarks/routing_learning.py --out benchmarks/results/routing_learning.json [--seeds 1 2 3]

Runs `recipes/tiny-moe.yaml` in bf16 through `verst run`, on the CPU, against engines whose routers choose by disturbed
logits (`routing_disturbance/`): for each seed once on the engine's routing and once on the trainer's own. The model is
random, so the supervised steps come first; they know no engine and so no disturbance.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from verst.runtime.data.models import tiny_moe
from verst.runtime.data.tasks import reversal

ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "routing_disturbance"


def main() -> None:
    """Every run, and the figures after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--noise", type=float, default=0.3, help="standard deviation, on the routers' logits")
    parser.add_argument("--lr", default="1e-3")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--modes", nargs="+", default=["rollout", "off"])
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    runs = options.runs.absolute()
    model = reversal(tiny_moe(runs / "tiny-moe-model"))
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for mode in options.modes:
            rows.append(run(options, runs, model, seed, mode))
            figures = {
                "noise": options.noise,
                "lr": options.lr,
                "overrides": options.overrides,
                "date": datetime.date.today().isoformat(),
                "runs": rows,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(figures, indent=1) + "\n")
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "curve"}), flush=True)


def run(options: argparse.Namespace, runs: Path, model: Path, seed: int, mode: str) -> dict[str, Any]:
    """One run's figures. Raises CalledProcessError when it fails."""
    name = f"routing-{mode}-{seed}-{int(time.time())}"
    settings = (
        f"name={name}",
        f"runs_dir={runs}",
        f"model.path={model}",
        "model.dtype=bfloat16",
        f"data.train.path={model}/train.jsonl",
        f"data.eval.path={model}/eval.jsonl",
        f"algorithm.warm_start.path={model}/demonstrations.jsonl",
        f"algorithm.seed={seed}",
        f"algorithm.steps={options.steps}",
        f"algorithm.routing_replay={mode}",
        f"trainer.megatron.lr={options.lr}",
        "checkpoint.interval=1000",
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])),
        "ROUTING_NOISE": str(options.noise),
    }
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "run", str(ROOT / "recipes/tiny-moe.yaml")]
    began = time.monotonic()
    subprocess.run([*command, *settings, *options.overrides], check=True, env=environment, timeout=3600)
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    score = {line["when"]: line["score"] for line in lines if line["kind"] == "eval"}
    tail = steps[-len(steps) // 4 :]
    return {
        "seed": seed,
        "replay": mode,
        "held_out_before": score["before"],
        "held_out_after": score["after"],
        "reward_first_quarter": statistics.fmean(s["reward"] for s in steps[: len(steps) // 4]),
        "reward_last_quarter": statistics.fmean(s["reward"] for s in tail),
        "reward_lowest_after_best": _fall([s["reward"] for s in steps]),
        "kl_rollout_k3_last_quarter": statistics.fmean(s["kl_rollout_k3"] for s in tail),
        "logprob_max_diff": max(s["logprob_max_diff"] for s in steps),
        "grad_norm_largest": max(s["grad_norm"] for s in steps),
        "wall_seconds": time.monotonic() - began,
        "curve": [{k: s[k] for k in ("step", "reward", "grad_norm", "kl_rollout_k3")} for s in steps],
    }


def _fall(rewards: list[float], window: int = 5) -> float:
    """How far the running mean of rewards falls below the best that it had reached."""
    means = [statistics.fmean(rewards[i : i + window]) for i in range(len(rewards) - window + 1)]
    best, fall = means[0], 0.0
    for mean in means:
        best = max(best, mean)
        fall = max(fall, best - mean)
    return fall


if __name__ == "__main__":
    main()
