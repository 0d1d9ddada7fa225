"""What a run's curve says: did it learn, did it stay stable; and what the runs of a mode say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

WINDOW = 10  # steps that rewards are averaged over
# A run is unstable when one of these is seen. Of WINDOW steps of 128 samples each, the mean has a noise of 0.01.
LIMITS = {
    "fall": 0.1,  # of the mean reward below the best that it had reached
    "grad_norm_times_median": 20.0,  # the largest gradient norm
}
KEPT = ("step", "reward", "grad_norm", "kl_rollout_k3", "logprob_max_diff")  # of each step


def curve_of(lines: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The steps among the lines of a metrics.jsonl, each once."""
    steps = {line["step"]: line for line in lines if line["kind"] == "step"}
    return [{key: steps[number][key] for key in KEPT} for number in sorted(steps)]


def figures(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of one run, however long; nothing of an empty one."""
    if not curve:
        return {}
    rewards = [step["reward"] for step in curve]
    tail = curve[-WINDOW:]
    return {
        "steps": len(curve),
        "reward_first": statistics.fmean(rewards[:WINDOW]),
        "reward_best": max(rewards),
        "reward_final": rewards[-1],
        "reward_last_10": statistics.fmean(rewards[-WINDOW:]),
        "reward_fall": fall(rewards),
        "kl_median": statistics.median(step["kl_rollout_k3"] for step in curve),
        "kl_last_10": statistics.fmean(step["kl_rollout_k3"] for step in tail),
        "ratio_largest": _exp(max(step["logprob_max_diff"] for step in curve)),
        "ratio_median": _exp(statistics.median(step["logprob_max_diff"] for step in curve)),
        "grad_norm_median": statistics.median(step["grad_norm"] for step in curve),
        "grad_norm_largest": max(step["grad_norm"] for step in curve),
    }


def fall(rewards: Sequence[float]) -> float:
    """How far the running mean of rewards falls below the best that it had reached."""
    means = [statistics.fmean(rewards[i : i + WINDOW]) for i in range(max(1, len(rewards) - WINDOW + 1))]
    best, deepest = means[0], 0.0
    for mean in means:
        best = max(best, mean)
        deepest = max(deepest, best - mean)
    return deepest


def verdict(curve: Sequence[dict[str, float]], failed: bool) -> dict[str, Any]:
    """ "stable", or "unstable" with what was seen, "unknown" of a run without enough steps, or "failed"."""
    found = figures(curve)
    seen = []
    if any(not math.isfinite(value) for step in curve for value in step.values()):
        seen.append("a figure is not finite")
    elif len(curve) >= 2 * WINDOW:
        if found["reward_fall"] > LIMITS["fall"]:
            seen.append(f"the mean reward fell by {found['reward_fall']:.3f} from its best")
        times = found["grad_norm_largest"] / max(1e-12, found["grad_norm_median"])
        if times > LIMITS["grad_norm_times_median"]:
            seen.append(f"a gradient norm was {times:.0f} times the median")
    if failed:
        return {"is": "failed", "seen": seen}
    if seen:
        return {"is": "unstable", "seen": seen}
    return {"is": "stable" if len(curve) >= 2 * WINDOW else "unknown", "seen": []}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By mode: mean, lowest and highest of each run's figures, and how many runs were stable."""
    found = {}
    for mode in dict.fromkeys(run["replay"] for run in runs):
        mine = [run for run in runs if run["replay"] == mode and run.get("steps")]
        verdicts = [run["verdict"]["is"] for run in runs if run["replay"] == mode]
        names = [name for name in figures([dict.fromkeys(KEPT, 0.0)]) if mine]
        found[mode] = {"verdicts": {word: verdicts.count(word) for word in sorted(set(verdicts))}} | {
            name: _spread([run[name] for run in mine]) for name in names
        }
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # JSON knows no infinity
