"""How far apart are engine and trainer, by routing replay and sampling temperature, on one GPU in bfloat16.

    python benchmarks/gpu/agreement.py --out results/ --model models/tiny-moe

Runs a few steps of recipes/tiny-moe.yaml for each case through `verst run`, colocated, and writes one JSON file: of
each step the mean and the largest difference of a token's log-probabilities, and kl_rollout_k3. The mean is what
`trainer.max_logprob_diff` bounds. Every engine tensor is compared with the trainer's after each weight round.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from cases import measure_cases  # beside this file
from one_trainer_one_engine import run

# Routing replay, temperature. SGLang 0.5.17 serves no float32 on a GPU: its RMSNorm kernel refuses it.
CASES = [("rollout", 0.7), ("off", 1.0), ("rollout", 1.0), ("off", 0.7)]
FIGURES = ("logprob_mean_diff", "logprob_max_diff", "kl_rollout_k3", "entropy")


def measure(options: argparse.Namespace, own: list[str], case: tuple[str, float]) -> dict[str, Any]:
    """One case's figures. Raises CalledProcessError when the run fails."""
    replay, temperature = case
    options.overrides = [
        "placement.layout=colocated",
        "weights.check=true",
        "algorithm.steps=4",
        "algorithm.stages.0.steps=8",
        "rollout.sglang.disable-cuda-graph=true",
        "trainer.max_logprob_diff=100",  # nothing is refused here: it is what is measured
        f"algorithm.routing_replay={replay}",
        f"rollout.sampling.temperature={temperature}",
        *own,
    ]
    folder = options.runs.absolute() / f"agreement-{replay}-{temperature}"
    seconds = run(options, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return {
        "dtype": "bfloat16",
        "routing_replay": replay,
        "temperature": temperature,
        "steps": [{name: step.get(name) for name in FIGURES} for step in steps],
        "checked_tensors": sum(line["checked_tensors"] for line in lines if line["kind"] == "sync"),
        "wall_seconds": seconds,
    }


if __name__ == "__main__":
    measure_cases("agreement.json", CASES, measure)
