"""Implements `verst samples`: prints the answers that a run kept of a step, for people to read."""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run
from verst.runtime.dashboard.shown import ShownWhole, read_samples, shown_steps


def print_samples(run_dir: Path, step: int | None, count: int, as_json: bool) -> int:
    """Prints up to `count` kept samples of a step; None: of the last. Returns the exit code."""
    folder = open_run(run_dir)
    steps = shown_steps(folder)
    if not steps:
        raise UserError(f"{folder.root} has kept no samples yet (metrics.shown_every, metrics.shown_groups)")
    if step is not None and step not in steps:
        raise UserError(f"no samples were kept of step {step}; kept are: {_ranges(sorted(steps))}")
    chosen = max(steps) if step is None else step
    samples = read_samples(steps[chosen])[:count]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(samples)).decode())
        return 0
    console = Console()
    for sample in samples:
        _print(console, sample, chosen)
    return 0


def _print(console: Console, sample: ShownWhole, step: int) -> None:
    reward = "none" if sample.reward is None else f"{sample.reward:g}"
    advantage = "" if sample.advantage is None else f", advantage {sample.advantage:+.3f}"
    head = f"step {step}, group {sample.group}, answer {sample.index}: reward {reward}{advantage}"
    console.print(Text(head, style="bold"), soft_wrap=True)
    console.print(Text(sample.prompt, style="dim"), soft_wrap=True)
    console.print(Text(sample.response), soft_wrap=True)
    console.print()


def _ranges(numbers: list[int]) -> str:
    """Numbers for people, neighbours together: "1 to 4, 8"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in found)
