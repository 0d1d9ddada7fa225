"""How many tokens go through the trainer for each real one, with packed sequences and with padded rows?

    python -P benchmarks/padding.py --out benchmarks/results/padding.json

Packed is what `plan_step` plans. Padded is what it planned before: rows of the longest sample in a micro-batch, samples
sorted by length, as many rows as the budget holds. Both plan the same samples, of chat-like and of reasoning-like
lengths, for layouts whose tensor and context parallelism need different multiples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verst.runtime.controller.batch_plan import Part, plan_step
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import StepPlan

SAMPLES = (32, 128, 512)  # of a step, on one data-parallel rank
# Means and largest values of lognormal lengths, in tokens, and the deviation of their logarithm.
KINDS = {"chat": (400, 4096, 0.9), "reasoning": (4000, 16_384, 0.6)}
BUDGETS = (8192, 16_384, 32_768)
# What tensor parallelism with split sequences and context parallelism round a sequence's length up to.
LAYOUTS = {"one rank": 1, "tp 8": 8, "tp 4, cp 2": 16}


def main() -> None:
    """Writes the figures of every combination."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = [
        case(kind, samples, budget, layout)
        for kind in KINDS
        for samples in SAMPLES
        for budget in BUDGETS
        for layout in LAYOUTS
        if budget >= KINDS[kind][1]
    ]
    result = {"lengths": {kind: describe(kind) for kind in KINDS}, "cases": found}
    out.write_text(json.dumps(result, indent=1) + "\n")


def case(kind: str, samples: int, budget: int, layout: str) -> dict[str, Any]:
    """The figures of one step, both ways."""
    lengths, multiple = lengths_of(kind, samples), LAYOUTS[layout]
    ways = {"packed": packed(lengths, budget, multiple), "padded": padded(lengths, budget, multiple)}
    both = {way: row(widths, sum(lengths)) for way, widths in ways.items()}
    found = {"lengths": kind, "samples": samples, "budget": budget, "layout": layout, **both}
    print(json.dumps(found))
    return found


def describe(kind: str) -> dict[str, float]:
    """What the lengths of this kind look like."""
    lengths = lengths_of(kind, max(SAMPLES))
    return {"mean": float(np.mean(lengths)), "median": float(np.median(lengths)), "longest": max(lengths)}


def lengths_of(kind: str, samples: int, seed: int = 0) -> list[int]:
    """Lengths of samples of this kind, prompt and answer together, in tokens."""
    mean, longest, deviation = KINDS[kind]
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - deviation**2 / 2, deviation, samples)
    return np.clip(drawn, 16, longest).astype(int).tolist()


def planned(lengths: Sequence[int], budget: int, multiple: int) -> StepPlan:
    """The plan of a step on one data-parallel rank; sample i is in a group of its own, of this number."""
    groups = [
        GroupMeta(
            id=i,
            shard=0,
            lengths=[length],
            trained_tokens=[max(1, length // 2)],
            rewards=[0.0],
            finish=["stop"],
            oldest_version=0,
        )
        for i, length in enumerate(lengths)
    ]
    part = Part("policy", groups, [[1.0 - 2 * (i % 2)] for i in range(len(groups))], "token")
    return plan_step(step=0, parts=[part], dp_size=1, max_tokens=budget, pad_multiple=multiple)


def packed(lengths: Sequence[int], budget: int, multiple: int) -> list[list[int]]:
    """The padded lengths of the samples in each planned micro-batch."""
    (rank,) = planned(lengths, budget, multiple).microbatches
    return [[up(ref.length, multiple) for ref in micro.samples] for micro in rank]


def padded(lengths: Sequence[int], budget: int, multiple: int) -> list[list[int]]:
    """The same for rows of the longest sample."""
    return [[up(cut[0], multiple)] * len(cut) for cut in rows(lengths, budget, multiple)]


def rows(lengths: Sequence[int], budget: int, multiple: int) -> list[list[int]]:
    """The lengths of the samples in each micro-batch of rows of the longest one, which comes first."""
    cuts: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        if cuts and (len(cuts[-1]) + 1) * up(cuts[-1][0], multiple) <= budget:
            cuts[-1].append(length)
        else:
            cuts.append([length])
    return cuts


def up(length: int, multiple: int) -> int:
    """`length`, rounded up to a multiple."""
    return -(-length // multiple) * multiple


def row(widths: list[list[int]], real: int) -> dict[str, Any]:
    """The figures of one way."""
    tokens = sum(map(sum, widths))
    return {"tokens_per_real_one": round(tokens / real, 4), "micro_batches": len(widths)}


if __name__ == "__main__":
    main()
