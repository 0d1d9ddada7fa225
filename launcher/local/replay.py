"""Implements `verst replay`: trains one step of a run again, and says whether its figures are the same."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verst.launcher.check.check import examine
from verst.launcher.local.commands import launch_and_show
from verst.launcher.plan.machine import this_machine
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.open import open_run
from verst.launcher.runs.prepare import prepare_run, recall_python_path
from verst.launcher.runs.recording import note_recording
from verst.runtime.hooks.config import TOLD
from verst.runtime.run.checkpoints import checkpoints_in, read_manifest
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader
from verst.runtime.store.recording import missing_steps, recorded_steps

# Figures of a step that tell how long it took, or of its generation: they cannot be the same.
_OF_ITS_TIME = (
    "time", "seconds", "critical_path", "bottleneck", "tokens_per_s", "rollout_tokens_per_s", "dropped", "reissued",
    "rewards_failed", "samples_masked", "samples_dropped", "staleness", "gpu_peak_allocated_gib",
    "gpu_peak_reserved_gib",
)  # fmt: skip
# What a run does besides training: a replay reports to no tracker, tells no function of its own, and evaluates nothing.
_ALONE = (
    "metrics.tensorboard=false", "metrics.wandb=null", "metrics.mlflow=null", "metrics.prometheus=null",
    *(f"hooks.{name}=null" for name in TOLD), "algorithm.early_stop=null", "checkpoint.keep_best=0",
)  # fmt: skip


def replay_step(run_dir: Path, step: int) -> int:
    """Trains the step again and prints its figures beside the recorded ones. Returns 0 if all are equal, else 1.

    Raises UserError when the run lacks the checkpoint before the step, the step's groups or its figures.
    """
    source = open_run(run_dir)
    before = figures(source, step)
    if before is None:
        raise UserError(f"{source.root} has no figures of step {step} in metrics.jsonl")
    if problem := missing_steps(recorded_steps(source.samples), step, step):
        raise UserError(f"{source.root}: {problem}")
    checkpoint = checkpoint_before(source, step)
    recall_python_path(source)
    with tempfile.TemporaryDirectory(prefix="verst-replay-") as scratch:
        overrides = [
            f"runs_dir={json.dumps(scratch)}", f"name=step-{step}", "record.keep=false",
            f"record.source={json.dumps(str(source.root))}", f"record.last_step={step}", *_ALONE,
        ]  # fmt: skip
        recipe = examine(source.recipe, overrides, this_machine())
        folder, plan = prepare_run(recipe, this_machine())
        note_recording(folder, recipe)
        if checkpoint is not None:
            (folder.checkpoints / checkpoint.name).symlink_to(checkpoint)
        if code := launch_and_show(folder, plan):
            return code
        after = figures(folder, step)
    if after is None:
        raise UserError(f"the replay of step {step} left no figures")
    return show(before, after, step)


def checkpoint_before(source: RunFolder, step: int) -> Path | None:
    """The checkpoint that the step began from; None if it began from `model.path`. Raises UserError if it is gone."""
    kept = {read_manifest(path).version: path for path in checkpoints_in(source.checkpoints)}
    if step - 1 in kept:
        return kept[step - 1]
    if step == 1:
        return None
    have = ", ".join(str(version) for version in sorted(kept)) or "none"
    interval = load_recipe(source.recipe).checkpoint.interval
    raise UserError(
        f"{source.root} has no checkpoint of weight version {step - 1}, from which step {step} began; it has {have} "
        f"(checkpoint.interval is {interval}; checkpoint.keep and keep_every say which are kept)"
    )


def figures(folder: RunFolder, step: int) -> dict[str, Any] | None:
    """The figures of a step that another training of it must repeat; None if it has none. The last line counts."""
    lines = [
        r for r in LineReader(folder.metrics).records() if (r.get("kind"), r.get("step")) == ("step", step)
    ]
    if not lines:
        return None
    found = {key: value for key, value in lines[-1].items() if key not in _OF_ITS_TIME}
    for source in found.get("sources", {}).values():
        source.pop("dropped", None)  # before the step, while its groups were generated
    return found


def show(before: dict[str, Any], after: dict[str, Any], step: int) -> int:
    """Prints the figures that differ, or that none does."""
    names = [*before, *(name for name in after if name not in before)]
    differing = [name for name in names if before.get(name) != after.get(name)]
    if not differing:
        print(f"step {step}: all {len(before)} figures are equal to the recorded ones, bit for bit")
        return 0
    table = Table("figure", "recorded", "replayed", box=None, padding=(0, 2, 0, 0))
    for name in differing:
        table.add_row(name, str(before.get(name)), str(after.get(name)))
    Console().print(table)
    print(f"step {step}: {len(differing)} of {len(names)} figures differ")
    return 1
