"""Implements `verst compare`: several runs side by side, what differs in their recipes and what they reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.open import open_run
from verst.launcher.runs.resume import flat
from verst.launcher.watch.state import seconds_per_step
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader

_LAST = 10  # steps that "last" figures are the mean of
_MEANS = {
    "reward": "reward", "response length": "response_length", "truncated": "truncated", "grad norm": "grad_norm",
    "kl rollout (k3)": "kl_rollout_k3", "trained tokens/s": "tokens_per_s",
    "generated tokens/s": "rollout_tokens_per_s",
}  # fmt: skip


def compare_runs(run_dirs: Sequence[Path], as_json: bool) -> int:
    """Prints the comparison. Returns the exit code. Raises UserError when one of them is no run."""
    folders = [open_run(run_dir) for run_dir in run_dirs]
    recipes = [dict(flat(load_recipe(folder.recipe).resolved())) for folder in folders]
    figures = [figures_of(folder) for folder in folders]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    by_key = {key: [recipe.get(key) for recipe in recipes] for key in keys if key not in ("name", "runs_dir")}
    differing = {key: values for key, values in by_key.items() if any(value != values[0] for value in values)}
    if as_json:
        told = {
            "runs": [str(folder.root) for folder in folders],
            "figures": figures,
            "recipes_differ_in": differing,
        }
        print(msgspec.json.format(msgspec.json.encode(told)).decode())
        return 0
    table = Table("", *(escape(folder.root.name) for folder in folders), box=None, padding=(0, 2, 0, 0))
    for name in dict.fromkeys(name for of_run in figures for name in of_run):
        table.add_row(name, *(_number(of_run.get(name)) for of_run in figures))
    for key, values in differing.items():
        table.add_row(Text(key, style="dim"), *(Text("not set" if v is None else str(v)) for v in values))
    Console().print(table)
    if not differing:
        print("the recipes are the same")
    return 0


def figures_of(folder: RunFolder) -> dict[str, float | int | None]:
    """What a run reached. A figure over the last steps is their mean."""
    records = LineReader(folder.metrics).records()
    steps = _in_order(records, "step", "rollout")  # the second of a run that only generates
    offline = _in_order(records, "stage_step")
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("kind") == "eval":
            sets.setdefault(record["set"], []).append(record)
    found: dict[str, Any] = {"steps": len(offline) + len(steps)}
    for stage in dict.fromkeys(line["stage"] for line in offline):
        losses = [float(line["loss"]) for line in offline if line["stage"] == stage]
        held_out = [line for line in _in_order(records, "stage_eval") if line["stage"] == stage]
        found[f"{stage} loss, last {_LAST} steps"] = fmean(losses[-_LAST:])
        found[f"{stage} held-out loss last"] = held_out[-1][f"{stage}_loss"] if held_out else None
        found[f"{stage} held-out accuracy last"] = held_out[-1].get(f"{stage}_accuracy") if held_out else None
    for name, lines in sets.items():
        keys = [key for key in lines[-1] if key == "reward" or key.startswith(("pass@", "best@", "maj@"))]
        for key in (key for key in keys if not key.endswith("_ci")):
            of = f"{name}/{key}"
            found[f"{of} before"] = next((s[key] for s in reversed(lines) if s.get("when") == "before"), None)
            found[f"{of} last"] = lines[-1][key]
            found[f"{of} best"] = max(s[key] for s in lines if key in s)
        found[f"{name}/reward ± of last"] = lines[-1].get("reward_ci")
    found["reward first"] = steps[0].get("reward") if steps else None
    for name, key in _MEANS.items():
        values = [float(s[key]) for s in steps[-_LAST:] if s.get(key) is not None]
        found[f"{name}, last {_LAST} steps"] = fmean(values) if values else None
    found["seconds per step"] = seconds_per_step(steps or offline)
    return {name: value for name, value in found.items() if value is not None}


def _in_order(records: Sequence[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """The lines of steps of these kinds in the order of the steps; a repeated step counts once."""
    by_step = {int(record["step"]): record for record in records if record.get("kind") in kinds}
    return [by_step[step] for step in sorted(by_step)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
