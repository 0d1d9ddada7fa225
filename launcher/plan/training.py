"""What a recipe trains with, for `verst plan`: the settings that decide training, and sizes that follow from them.

Also the prompts that it trains and is evaluated on, and what it does with recordings. A setting that the recipe leaves
out has Verst's default (`runtime/trainer/config.py`) and is marked as such.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
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
    lr: float | None  # its own learning rate; None: that of the settings


class SourceSize(msgspec.Struct, frozen=True):
    """A source of training prompts."""

    name: str  # "": the only one
    share: float  # of the prompts
    rows: int | None  # None: not readable here
    passes: float | None  # over its rows in all steps; None also where a curriculum chooses them
    curriculum: str | None


class EvalSize(msgspec.Struct, frozen=True):
    """An evaluation set."""

    name: str
    rows: int | None  # None: not readable here
    samples: int  # answers to each row
    interval: int | None  # None: before and after training alone
    figures: list[str]


class Training(msgspec.Struct, kw_only=True):
    """The settings of training, and what a step and a checkpoint amount to."""

    settings: list[Setting]
    stages: list[StageSize]  # those with rows of their own
    samples_per_step: int  # of the policy stage; 0 without one, or if they are those of a recording
    tokens_per_step: int  # the most there can be
    updates_per_step: int  # 0 if nothing is trained
    tokens_per_microbatch: int  # of packed sequences, over all ranks of a context-parallel group
    sources: list[SourceSize]  # of training prompts; none without engines
    evaluations: list[EvalSize]
    said: list[str]  # what else the run does, in words
    checkpoint_bytes: int | None  # None: the model's size is not known here, or there are no checkpoints
    kept_bytes: int | None  # the most that checkpoints and the export take at once
    free_bytes: int | None  # where the run folder will be


def training_of(recipe: Recipe) -> Training:
    """Reads the data files' lengths and the model's headers, and nothing else."""
    algorithm, record = recipe.algorithm, recipe.record
    samples = algorithm.prompts_per_step * algorithm.samples_per_prompt if recipe.starts_engines else 0
    checkpoint = None if record.generate_only or record.last_step else _checkpoint_bytes(recipe)
    return Training(
        settings=_settings(recipe),
        stages=[_stage_size(span) for span in algorithm.spans],
        samples_per_step=samples,
        tokens_per_step=samples * max(lengths.prompt + lengths.new for lengths in training_lengths(recipe)),
        updates_per_step=0 if record.generate_only else algorithm.updates_per_step,
        tokens_per_microbatch=recipe.trainer.max_tokens_per_microbatch,
        sources=_sources(recipe) if recipe.starts_engines else [],
        evaluations=_evaluations(recipe) if recipe.evaluates else [],
        said=list(_said(recipe)),
        checkpoint_bytes=checkpoint,
        kept_bytes=None if checkpoint is None else checkpoint * _kept(recipe) + _export_bytes(recipe),
        free_bytes=_free(recipe.run_folder),
    )


def _stage_size(span: Span) -> StageSize:
    stage, rows = span.stage, count_rows(path_in_full(span.stage.data.path))
    epochs = stage.planned_steps * stage.batch_size / rows if rows else None
    return StageSize(stage.kind, stage.planned_steps, stage.batch_size, rows, epochs, stage.lr)


def training_lines(training: Training) -> list[str]:
    """The same for people."""
    trains = training.updates_per_step > 0
    shown = [f"{s.name} {s.value}{'' if s.given else ' (default)'}" for s in training.settings]
    lines = [f"Training: {', '.join(shown)}"] if trains or training.stages else []
    for stage in training.stages:
        data = (
            f"; its file has {stage.rows:,} rows, {stage.epochs:.3g} passes"
            if stage.rows and stage.epochs
            else ""
        )
        own = "" if stage.lr is None else f" with lr {stage.lr:g}"
        lines.append(f"Stage {stage.kind}: {stage.steps:,} steps of {stage.rows_per_step:,} rows{own}{data}")
    updates = f"{training.updates_per_step} update{'s' * (training.updates_per_step > 1)} of the weights"
    if training.samples_per_step:
        lines.append(
            f"Each step: {training.samples_per_step:,} samples, at most {training.tokens_per_step:,} tokens, "
            f"{updates if trains else 'none of them trained on'}"
        )
    if trains or training.stages:
        lines.append(
            f"Micro-batches: packed sequences, at most {training.tokens_per_microbatch:,} tokens together"
        )
    lines += [_source_line(source) for source in training.sources if source.rows or source.name]
    lines += [_evaluation_line(each) for each in training.evaluations]
    lines += training.said
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


def _source_line(source: SourceSize) -> str:
    parts = [f"{100 * source.share:.3g} % of the prompts"] if source.name else []
    parts += [f"{source.rows:,} {'rows' if source.name else 'prompts'}"] if source.rows else []
    line = f"Data{f' {source.name}' if source.name else ''}: {', '.join(parts)}"
    if source.curriculum is not None:
        return f"{line}; {source.curriculum} weighs them before each step"
    if source.passes is None:
        return line
    return f"{line}; the run passes over them {source.passes:.3g} times"


def _evaluation_line(each: EvalSize) -> str:
    rows = f"{each.rows:,} prompts" if each.rows else "prompts"
    answers = f" x {each.samples} answers" if each.samples > 1 else ""
    often = "" if each.interval is None else f", and every {each.interval} steps"
    return (
        f"Evaluation {each.name}: {rows}{answers} before and after training{often}: {', '.join(each.figures)}"
    )


def _said(recipe: Recipe) -> Iterator[str]:
    record, early = recipe.record, recipe.algorithm.early_stop
    updates = recipe.algorithm.updates_per_step
    if early is not None and recipe.evaluates:
        yield (
            f"Early stop: the run ends once {early.patience} evaluations in a row bring no better {early.metric} of "
            f"{early.set}"
        )
    if record.source is not None:
        yield (
            f"Recording: trains on the groups that {record.source} kept, with {updates} "
            f"update{'s' * (updates > 1)} of the weights in each step"
        )
    elif record.generate_only:
        yield "Recording: keeps the groups of each step and trains on none; no checkpoint, no export"
    elif record.keep:
        yield "Recording: keeps the groups of all steps in samples/ of the run folder"


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
    for name in ("clip_low", "clip_high", "kl_coef", "entropy_coef"):
        settings.append(Setting(name, getattr(algorithm, name), name in given))
    for name in ("loss_average", "loss", "advantage"):
        settings.append(Setting(name, getattr(algorithm, name).rpartition(":")[2], name in given))
    if (critic := algorithm.critic) is not None:
        for name, value in critic.model_dump(exclude_none=True).items():
            if name != "optimizer":
                settings.append(Setting(f"critic.{name}", value, name in critic.model_fields_set))
        settings += [Setting(f"critic.{name}", value, True) for name, value in critic.optimizer.items()]
    if algorithm.correction:
        bounds = f"{algorithm.correction_low:g} to {algorithm.correction_high:g}"
        settings.append(Setting("correction", f"{algorithm.correction.rpartition(':')[2]}, {bounds}", True))
    if algorithm.kl_coef:
        settings.append(Setting("kl", algorithm.kl.rpartition(":")[2], "kl" in given))
        settings.append(Setting("kl_in", algorithm.kl_in, "kl_in" in given))
        settings += [
            Setting(f"reference.{key}", value, True)
            for key, value in algorithm.reference.model_dump(exclude_none=True).items()
        ]
        if algorithm.kl_target:
            settings.append(Setting("kl_target", algorithm.kl_target, True))
    if algorithm.teacher is not None:
        settings += [
            Setting(f"teacher.{key}", value, True) for key, value in algorithm.teacher.model_dump().items()
        ]
    return settings


def _sources(recipe: Recipe) -> list[SourceSize]:
    sources = recipe.data.train.by_name()
    whole = sum(source.weight for source in sources.values())
    prompts = recipe.algorithm.policy_steps * recipe.algorithm.prompts_per_step
    made = []
    for name, source in sources.items():
        rows, share = count_rows(path_in_full(source.path)), source.weight / whole
        passes = prompts * share / rows if rows and source.curriculum is None else None
        made.append(SourceSize(name, share, rows, passes, source.curriculum))
    return made


def _evaluations(recipe: Recipe) -> list[EvalSize]:
    return [
        EvalSize(
            name,
            count_rows(path_in_full(each.path)),
            each.samples_per_prompt,
            each.interval,
            list(each.scale.names()),
        )
        for name, each in recipe.data.eval_sets.items()
    ]


def _checkpoint_bytes(recipe: Recipe) -> int | None:
    """Weights and Adam's state: 16 bytes a parameter in float32 (weight, master, two moments), 14 in bfloat16.

    A critic counts as a second model.
    """
    count = _parameters(recipe)
    models = 1 if recipe.algorithm.critic is None else 2
    return None if count is None else models * count * (16 if recipe.model.dtype == "float32" else 14)


def _export_bytes(recipe: Recipe) -> int:
    return (_parameters(recipe) or 0) * (4 if recipe.model.dtype == "float32" else 2)


def _parameters(recipe: Recipe) -> int | None:
    folder = model_folder(recipe.model.path)
    scored = recipe.algorithm.trains_reward_model
    counted = None if folder is None else parameters_of(folder, scored=scored)
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
