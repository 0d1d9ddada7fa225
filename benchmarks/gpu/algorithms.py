"""Do the losses, corrections and divergences run in bfloat16 on a GPU, and what does the largest set of them cost?

    python benchmarks/gpu/algorithms.py --out results/ --model models/tiny-moe

Runs a few steps of recipes/tiny-moe.yaml for each case through `verst run`, colocated, and writes one JSON file: of
each step the figures of the algorithm, and the seconds of the trained pass. Every engine tensor is compared with the
trainer's after each weight round. A figure that is missing or not finite, or a case that trains nothing, is an error.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

from cases import measure_cases  # beside this file
from one_trainer_one_engine import run

_LOSSES, _CORRECTIONS = "verst.runtime.algorithms.losses", "verst.runtime.algorithms.corrections"
_ADVANTAGES, _KL = "verst.runtime.algorithms.advantages", "verst.runtime.algorithms.divergences"
CASES = {
    "grpo": ["algorithm.clip_ratio_c=3.0"],
    "gspo, sequence correction, kl": [
        f"algorithm.loss={_LOSSES}:gspo",
        "algorithm.loss_average=sample",
        f"algorithm.correction={_CORRECTIONS}:sequence_truncated",
        f"algorithm.kl={_KL}:k2",
        "algorithm.kl_coef=0.01",
        "algorithm.kl_importance=true",
        "algorithm.entropy_coef=0.001",
    ],
    "cispo, token correction": [
        f"algorithm.loss={_LOSSES}:cispo",
        "algorithm.clip_low=1.0",
        "algorithm.loss_average=constant",
        f"algorithm.correction={_CORRECTIONS}:token_masked",
        f"algorithm.advantage={_ADVANTAGES}:step_normalised_baseline",
    ],
    "updates, kl in the reward": [
        "algorithm.mini_batches=2",
        "algorithm.epochs=2",
        "algorithm.kl_coef=0.01",
        "algorithm.kl_in=reward",
        f"algorithm.kl={_KL}:k1",
    ],
}
FIGURES = {
    "grpo": ["clip_fraction", "dual_clip_fraction"],
    "gspo, sequence correction, kl": [
        "clip_fraction",
        "correction_mean",
        "correction_ess",
        "kl_reference_k3",
    ],
    "cispo, token correction": ["clip_fraction", "correction_mean", "correction_zero"],
    "updates, kl in the reward": ["clip_fraction", "kl_penalty"],
}
_ALWAYS = ("loss", "grad_norm", "entropy", "ratio", "kl_rollout_k3", "logprob_mean_diff", "trained_tokens")


def measure(options: argparse.Namespace, own: list[str], name: str) -> dict[str, Any]:
    """One case's figures. Raises CalledProcessError when the run fails, and ValueError for a wrong figure."""
    overrides = [*CASES[name], *own]
    options.overrides = [
        "placement.layout=colocated",
        "weights.check=true",
        "algorithm.steps=6",
        "rollout.sglang.disable-cuda-graph=true",
        *overrides,
    ]
    folder = options.runs.absolute() / f"algorithms-{name.split(',')[0]}"
    seconds = run(options, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    figures = [{figure: step[figure] for figure in (*_ALWAYS, *FIGURES[name])} for step in steps]
    for step in figures:
        if wrong := [figure for figure, value in step.items() if not math.isfinite(value)]:
            raise ValueError(f"{name}: not finite: {wrong}")
    if len(steps) != 6 or not any(step["grad_norm"] for step in figures):
        raise ValueError(f"{name}: {len(steps)} steps, gradients {[step['grad_norm'] for step in figures]}")
    return {
        "case": name,
        "overrides": overrides,
        "steps": figures,
        "forward_backward_s": statistics.median(
            step["seconds"]["train/forward_backward"] for step in steps[1:]
        ),
        "checked_tensors": sum(line["checked_tensors"] for line in lines if line["kind"] == "sync"),
        "wall_seconds": seconds,
    }


if __name__ == "__main__":
    measure_cases("algorithms.json", CASES, measure)
