"""Trainer and engine in turns on one GPU: does it run, is memory given back, what does a turn cost.

    python benchmarks/gpu/colocated.py --out results/ --model models/tiny-moe

Runs some steps of recipes/tiny-moe.yaml with `placement.layout: colocated` through `verst run` on a machine with one
GPU and samples the GPU's memory meanwhile. Writes one JSON file: the GPU's memory in each turn (the median and the
most that was seen), the seconds that passing the turn took, and what the run says of itself. Needs the `gpu` extra
(torch-memory-saver).
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from one_trainer_one_engine import machine, run, summarise  # beside this file

_EVERY_S = 0.1
_GIB = 1 << 30


class MemorySamples:
    """The memory in use on a GPU, by time, from a thread of its own."""

    def __init__(self, gpu: int) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml = pynvml
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(gpu)
        self._ended = threading.Event()
        self.samples: list[tuple[float, int]] = []  # wall clock, bytes

    def __enter__(self) -> MemorySamples:
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self.samples.append((time.time(), self._nvml.nvmlDeviceGetMemoryInfo(self._gpu).used))


def by_turn(samples: list[tuple[float, int]], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each turn, from when it was passed to when the next passing began: GiB in use on the GPU."""
    turns = [line for line in lines if line["kind"] == "turn"]
    found = []
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        until = samples[-1][0] if after is None else after["time"] - after["seconds"]
        used = [bytes_ / _GIB for at, bytes_ in samples if turn["time"] <= at <= until]
        found.append(
            {
                "turn": turn["turn"],
                "version": turn["version"],
                "passing_seconds": turn["seconds"],
                "turn_seconds": until - turn["time"],
                "gpu_gib": {"median": statistics.median(used), "most": max(used)} if used else None,
                "trainer_gib": {
                    key: turn[f"trainer_{key}"] / _GIB for key in ("held", "offloaded", "allocated")
                },
            }
        )
    return found


def main() -> None:
    """Runs it and writes the figures. Raises SystemExit when memory was not given back."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    options.recipe = "tiny-moe"
    options.overrides = [
        "placement.layout=colocated",
        "weights.check=true",
        "algorithm.steps=8",
        "algorithm.stages.0.steps=8",
        "checkpoint.interval=4",
        *options.overrides,
    ]
    folder = options.runs.absolute() / f"gpu-{options.recipe}"
    with MemorySamples(options.gpu) as memory:
        before = memory._nvml.nvmlDeviceGetMemoryInfo(memory._gpu).used / _GIB
        seconds = run(options, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    turns = by_turn(memory.samples, lines)
    figures = {
        "gpu_gib_before": before,
        "turns": turns,
        "median_passing_seconds": {
            turn: statistics.median(t["passing_seconds"] for t in turns if t["turn"] == turn)
            for turn in ("trainer", "both", "engines")
        },
        "wall_seconds": seconds,
        "overrides": options.overrides,
        **summarise(folder),
        **machine(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "colocated_tiny-moe.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))
    _require_release(turns)


def _require_release(turns: list[dict[str, Any]]) -> None:
    """The engine's cache and weights must be gone from the GPU while the trainer has it."""
    gib = {
        turn: [t["gpu_gib"]["median"] for t in turns if t["turn"] == turn and t["gpu_gib"]]
        for turn in ("trainer", "engines")
    }
    if min(gib["engines"][1:]) - max(gib["trainer"]) < 1:
        raise SystemExit(f"the engine kept its memory in the trainer's turn (GiB on the GPU): {gib}")


if __name__ == "__main__":
    main()
