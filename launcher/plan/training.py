"""What a recipe trains with, for `verst plan`: the settings that decide training, and sizes that follow from them.

A setting that the recipe leaves out has Verst's default (`runtime/trainer/config.py`) and is marked as such.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from verst.launcher.plan.memory import in_words, parameters_of
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.recipe import Recipe, training_lengths
from verst.runtime.algorithms.stages import Span
from verst.runtime.data.files import path_in_full
from verst.runtime.data.records import count_rows
from verst.runtime.trainer.config import OPTIMIZER_DEFAULTS

# Megatron's options whose names begin so are shown if the recipe gives them.
_ALSO_SHOWN = ("lr", "min-lr", "moe-router-load-balancing", "moe-aux-loss")


class Setting(msgspec.Struct, frozen=True):
    """One setting. `given`: the recipe says so; otherwise it is a default."""

    name: str
    value: Any
    given: bool


class StageSize(msgspec.Struct, frozen=True):
    """A stage with rows of its own."""

    kind: str
    steps: int
    rows_per_step: int
    rows: int | None  # of its file; None: not readable here
    epochs: float | None  # passes over them


class Training(msgspec.Struct, kw_only=True):
    """The settings of training, and what a step and a checkpoint amount to."""

    settings: list[Setting]
    stages: list[StageSize]  # those with rows of their own
    samples_per_step: int  # of the policy stage; 0 without one
    tokens_per_step: int  # the most there can be
    updates_per_step: int
    tokens_per_microbatch: int  # of packed sequences, over all ranks of a context-parallel group
    prompts: int | None  # rows of data.train; None: not readable here
    epochs: float | None  # passes over data.train in all steps
    checkpoint_bytes: int | None  # None: the model's size is not known here
    kept_bytes: int | None  # the most that checkpoints and the export take at once
    free_bytes: int | None  # where the run folder will be


def training_of(recipe: Recipe) -> Training:
    """Reads the data file's length and the model's headers, and nothing else."""
    algorithm = recipe.algorithm
    samples = algorithm.prompts_per_step * algorithm.samples_per_prompt if algorithm.generates else 0
    prompts = _rows(recipe) if algorithm.generates else None
    trained = algorithm.policy_steps * algorithm.prompts_per_step
    checkpoint = _checkpoint_bytes(recipe)
    return Training(
        settings=_settings(recipe),
        stages=[_stage_size(span) for span in algorithm.spans],
        samples_per_step=samples,
        tokens_per_step=samples * max(lengths.prompt + lengths.new for lengths in training_lengths(recipe)),
        updates_per_step=algorithm.updates_per_step,
        tokens_per_microbatch=recipe.trainer.max_tokens_per_microbatch,
        prompts=prompts,
        epochs=trained / prompts if prompts else None,
        checkpoint_bytes=checkpoint,
        kept_bytes=None if checkpoint is None else checkpoint * _kept(recipe) + _export_bytes(recipe),
        free_bytes=_free(recipe.run_folder),
    )


def _stage_size(span: Span) -> StageSize:
    stage, rows = span.stage, count_rows(path_in_full(span.stage.data.path))
    epochs = stage.planned_steps * stage.batch_size / rows if rows else None
    return StageSize(stage.kind, stage.planned_steps, stage.batch_size, rows, epochs)


def training_lines(training: Training) -> list[str]:
    """The same for people."""
    shown = [f"{s.name} {s.value}{'' if s.given else ' (default)'}" for s in training.settings]
    lines = [f"Training: {', '.join(shown)}"]
    for stage in training.stages:
        data = (
            f"; its file has {stage.rows:,} rows, {stage.epochs:.3g} passes"
            if stage.rows and stage.epochs
            else ""
        )
        lines.append(f"Stage {stage.kind}: {stage.steps:,} steps of {stage.rows_per_step:,} rows{data}")
    if training.samples_per_step:
        lines.append(
            f"Each step: {training.samples_per_step:,} samples, at most {training.tokens_per_step:,} tokens, "
            f"{training.updates_per_step} update{'s' * (training.updates_per_step > 1)} of the weights"
        )
    lines.append(
        f"Micro-batches: packed sequences, at most {training.tokens_per_microbatch:,} tokens together"
    )
    if training.prompts is not None and training.epochs is not None:
        lines.append(
            f"Data: {training.prompts:,} prompts; the run passes over them {training.epochs:.3g} times"
        )
    if training.checkpoint_bytes is not None and training.kept_bytes is not None:
        free = training.free_bytes
        lines.append(
            f"Disk: {in_words(training.checkpoint_bytes)} per checkpoint; checkpoints and export together up to "
            f"{in_words(training.kept_bytes)}" + (f", {in_words(free)} are free" if free is not None else "")
        )
        if free is not None and free < training.kept_bytes:
            lines.append(
                "warning: that is more than is free: lower checkpoint.keep, or set runs_dir to another disk"
            )
    return lines


def _settings(recipe: Recipe) -> list[Setting]:
    megatron, algorithm = recipe.trainer.megatron, recipe.algorithm
    settings = [
        Setting(name, megatron.get(name, value), name in megatron)
        for name, value in OPTIMIZER_DEFAULTS.items()
    ]
    settings += [
        Setting(name, value, True) for name, value in megatron.items()
        if name not in OPTIMIZER_DEFAULTS and name.startswith(_ALSO_SHOWN)
    ]  # fmt: skip
    if "moe-router-load-balancing-type" not in megatron:
        settings.append(Setting("moe-router-load-balancing-type", "none", False))
    if not algorithm.generates:
        return settings
    given = algorithm.model_fields_set
    for name in ("clip_low", "clip_high", "kl_coef", "entropy_coef", "loss_average"):
        settings.append(Setting(name, getattr(algorithm, name), name in given))
    for name in ("loss", "advantage"):
        settings.append(Setting(name, getattr(algorithm, name).rpartition(":")[2], name in given))
    if algorithm.correction:
        bounds = f"{algorithm.correction_low:g} to {algorithm.correction_high:g}"
        settings.append(Setting("correction", f"{algorithm.correction.rpartition(':')[2]}, {bounds}", True))
    if algorithm.kl_coef:
        settings.append(Setting("kl", algorithm.kl.rpartition(":")[2], "kl" in given))
        settings.append(Setting("kl_in", algorithm.kl_in, "kl_in" in given))
        if algorithm.kl_target:
            settings.append(Setting("kl_target", algorithm.kl_target, True))
    return settings


def _rows(recipe: Recipe) -> int | None:
    counts = [count_rows(path_in_full(source.path)) for source in recipe.data.train.by_name().values()]
    return None if None in counts else sum(count for count in counts if count is not None)


def _checkpoint_bytes(recipe: Recipe) -> int | None:
    """Weights and Adam's state: 16 bytes a parameter in float32 (weight, master, two moments), 14 in bfloat16."""
    count = _parameters(recipe)
    return None if count is None else count * (16 if recipe.model.dtype == "float32" else 14)


def _export_bytes(recipe: Recipe) -> int:
    return (_parameters(recipe) or 0) * (4 if recipe.model.dtype == "float32" else 2)


def _parameters(recipe: Recipe) -> int | None:
    folder = model_folder(recipe.model.path)
    counted = None if folder is None else parameters_of(folder)
    return None if counted is None else sum(counted)


def _kept(recipe: Recipe) -> int:
    """The most checkpoints that exist at once: those kept, and the one that is being written."""
    checkpoint = recipe.checkpoint
    every = recipe.algorithm.last_version // checkpoint.keep_every if checkpoint.keep_every else 0
    written = -(-recipe.algorithm.last_version // checkpoint.interval)
    return min(checkpoint.keep + checkpoint.keep_best + every, written) + 1


def _free(folder: Path) -> int | None:
    place = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
    return None if place is None else shutil.disk_usage(place).free
