"""Implements `verst logprobs`: the log-probabilities of one kept sample under each policy, token by token."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run
from verst.runtime.dashboard.shown import ShownWhole, read_samples, shown_steps

# Column of the table -> field of a kept sample.
_POLICIES = {
    "engine": "rollout_logprobs", "old": "old_logprobs", "new": "trainer_logprobs", "reference": "reference_logprobs",
}  # fmt: skip


def print_logprobs(run_dir: Path, name: str | None, step: int | None, marked: int, as_json: bool) -> int:
    """Prints the table of a sample, named GROUP/INDEX; None: the first kept one. Returns the exit code.

    Raises UserError if the run did not keep the sample.
    """
    folder = open_run(run_dir)
    steps = shown_steps(folder)
    if not steps:
        raise UserError(f"{folder.root} has kept no samples yet (metrics.shown_every, metrics.shown_groups)")
    if step is not None and step not in steps:
        raise UserError(f"no samples were kept of step {step}; kept are {min(steps)} to {max(steps)}")
    wanted = None if name is None else _parsed(name)
    # Without a step, the last one that has the sample.
    for number in [step] if step is not None else sorted(steps, reverse=True):
        samples = [s for s in read_samples(steps[number]) if wanted in (None, (str(s.group), s.index))]
        if samples:
            return _print(samples[0], number, marked, as_json)
    of = "of any step" if step is None else f"of step {step}"
    raise UserError(
        f"{folder.root} kept no sample {name} {of}: `verst samples` shows those that it kept; metrics.shown_groups and "
        "metrics.shown_samples say how many"
    )


def _parsed(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", name)
    if match is None:
        raise UserError(f"--sample is {name!r}, must be GROUP/INDEX, such as 57/0")
    return match[1], int(match[2])


def rows(sample: ShownWhole, marked: int) -> list[dict[str, Any]]:
    """A row for each token of the response: the log-probabilities, `difference` = new - engine, `marked`.

    A token that is not trained on has no log-probability but the engine's: the files have 0 for it. Of the others those
    `marked` with the largest differences are marked, if these are above 0.
    """
    columns = {name: getattr(sample, field) for name, field in _POLICIES.items()}
    made = []
    for place, token in enumerate(sample.tokens):
        row: dict[str, Any] = {"token": token}
        trained = _at(columns["new"], place) not in (None, 0.0)
        for name, values in columns.items():
            row[name] = _at(values, place) if trained or name == "engine" else None
        row["difference"] = row["new"] - row["engine"] if _both(row) else None
        made.append(row)
    sizes = sorted((abs(row["difference"]) for row in made if row["difference"]), reverse=True)
    least = sizes[min(marked, len(sizes)) - 1] if sizes and marked else math.inf
    for row in made:
        row["marked"] = bool(row["difference"]) and abs(row["difference"]) >= least
    return made


def _both(row: dict[str, Any]) -> bool:
    return row["new"] is not None and row["engine"] is not None


def _at(values: list[float | None] | None, place: int) -> float | None:
    return values[place] if values and place < len(values) else None


def _print(sample: ShownWhole, step: int, marked: int, as_json: bool) -> int:
    found = rows(sample, marked)
    if as_json:
        told = {"step": step, "group": sample.group, "index": sample.index, "tokens": found}
        print(msgspec.json.format(msgspec.json.encode(told)).decode())
        return 0
    console = Console()
    console.print(
        f"step {step}, group {sample.group}, answer {sample.index}: log-probabilities in nats; "
        "difference = new - engine",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    shown = [name for name in _POLICIES if any(row[name] is not None for row in found)]
    table = Table("", "token", *shown, "difference", box=None, padding=(0, 2, 0, 0))
    for place, row in enumerate(found):
        mark = "<" if row["marked"] else ""
        cells = [_number(row[name], 4) for name in shown]
        style = "bold yellow" if row["marked"] else ""
        table.add_row(
            str(place),
            Text(repr(row["token"])),
            *cells,
            f"{_number(row['difference'], 5, '+')} {mark}",
            style=style,
        )
    console.print(table)
    if not any(row["new"] is not None for row in found):
        print("no token of this answer was trained on")
    return 0


def _number(value: float | None, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.{digits}f}"
