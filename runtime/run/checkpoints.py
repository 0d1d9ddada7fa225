"""Finds, completes and removes checkpoint folders. Imports no torch.

```
checkpoints/step-000100/          complete: it appears by one rename
    checkpoint.json               this module's Manifest
    controller.bin                the controller's state, opaque here
    metadata.json __0_0.distcp …  Megatron's distributed format: model, optimizer, random states, a critic with
                                  its optimizer, and the reference policy where `model.path` is not the reference
checkpoints/.step-000200.1f3a….partial   being written, or left behind by a crash
checkpoints/.step-000100.replaced        the earlier one of that name while the new one takes its place
```
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from verst.runtime.run.line_reader import LineReader
from verst.sync.files.durable import flush, naming

MANIFEST = "checkpoint.json"
CONTROLLER = "controller.bin"
FORMAT = 2

_PARTIAL = ".partial"
_REPLACED = ".replaced"


class StepCounts(msgspec.Struct, frozen=True):
    """How many updates a model's optimizer and its schedule have taken."""

    optimizer_steps: int
    scheduler_steps: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a checkpoint that are not tensors."""

    format: int
    model: str  # a digest of the names and shapes of the model's Hugging Face tensors
    version: int  # the weight version, which equals the run's number of optimiser steps
    optimizer_steps: int  # steps in Adam's bias correction
    scheduler_steps: int
    parallel: dict[str, int | bool | None]  # the layout that wrote it; its random states fit no other layout
    reference: bool = False  # whether it holds the weights of the reference policy
    kl_coef: float | None = None  # where algorithm.kl_target adapts it
    critic: StepCounts | None = None  # of the critic that the checkpoint holds, if it holds one


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    complete = checkpoints_in(folder)
    return complete[-1] if complete else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first. Names have six or more digits, so a longer name is newer."""
    found = [p.parent for p in folder.glob(f"step-*/{MANIFEST}")]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest. Raises ValueError if `path` is not a complete checkpoint of a known format."""
    file = path / MANIFEST
    if not file.is_file():
        raise ValueError(f"{path} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = msgspec.json.decode(file.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise ValueError(f"{file} is not a checkpoint's manifest: {error}") from error
    if manifest.format != FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {manifest.format}; this version of Verst reads {FORMAT}"
        )
    return manifest


def controller_state(path: Path) -> bytes:
    """The controller's state in a checkpoint."""
    return (path / CONTROLLER).read_bytes()


def partial_path(path: Path, token: int) -> Path:
    """The folder in which checkpoint `path` is written. `token` keeps it apart from other lives' remains."""
    return path.with_name(f".{path.name}.{token:x}{_PARTIAL}")


def complete(partial: Path, path: Path, manifest: Manifest, controller: bytes) -> None:
    """Turns the written folder `partial` into checkpoint `path`, replacing an earlier one of that name."""
    for name, content in (
        (CONTROLLER, controller),
        (MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2)),
    ):
        with naming(partial / name):
            (partial / name).write_bytes(content)
    for file in partial.iterdir():
        flush(file)
    flush(partial)
    replaced = path.with_name(f".{path.name}{_REPLACED}")
    if path.exists():
        os.rename(path, replaced)
    os.rename(partial, path)
    flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def clean(folder: Path) -> list[str]:
    """Removes what crashes left behind, and restores a checkpoint whose replacement was never completed.

    Returns the removed names. Call it only while nothing is being written to the folder.
    """
    removed = []
    for path in folder.glob(f".step-*{_REPLACED}"):
        original = path.with_name(path.name.removeprefix(".").removesuffix(_REPLACED))
        if not original.exists():
            os.rename(path, original)
    for path in [*folder.glob(f".step-*{_PARTIAL}"), *folder.glob(f".step-*{_REPLACED}")]:
        shutil.rmtree(path)
        removed.append(path.name)
    return removed


def discard(partial: Path) -> None:
    """Removes a checkpoint that could not be written. If that fails, `clean` removes it at the next start."""
    shutil.rmtree(partial, ignore_errors=True)


def version_of(path: Path) -> int:
    """The weight version in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def best_first(paths: Iterable[Path], scores: Mapping[int, float]) -> list[Path]:
    """The checkpoints whose version was evaluated, the highest score first; of equal scores the newest."""
    scored = [path for path in paths if version_of(path) in scores]
    return sorted(scored, key=lambda path: (scores[version_of(path)], version_of(path)), reverse=True)


def read_scores(metrics: Path, set: str | None, metric: str = "reward") -> dict[int, float]:
    """A figure of an evaluation set for each evaluated weight version, from metrics.jsonl.

    The last evaluation of a version counts.
    """
    return {
        int(record["step"]): float(record[metric])
        for record in LineReader(metrics).records()
        if record.get("kind") == "eval"
        and record.get("set") == set
        and isinstance(record.get(metric), int | float)
    }


def being_evaluated(metrics: Path) -> int | None:
    """The weight version of the evaluation that began last; its scores may still come."""
    begun = [
        int(record["step"])
        for record in LineReader(metrics).records()
        if record.get("kind") == "eval_progress" and record.get("done") == 0
    ]
    return begun[-1] if begun else None


def prune(
    folder: Path,
    keep: int,
    every: int | None = None,
    best: int = 0,
    scores: Mapping[int, float] | None = None,
    evaluating: int | None = None,
) -> None:
    """Removes complete checkpoints, except the newest `keep`, those of every `every`-th step and the `best` best.

    `scores` are the held-out scores by weight version. The checkpoint of the version `evaluating` is kept, too, if any
    best one is: its score is not known yet.
    """
    present = checkpoints_in(folder)
    kept = {*present[-keep:], *best_first(present, scores or {})[:best]}
    if best:
        kept |= {path for path in present if version_of(path) == evaluating}
    if every is not None:
        kept |= {path for path in present if version_of(path) % every == 0}
    for path in present:
        if path in kept:
            continue
        # The manifest goes first, so that a half-removed folder does not count as a checkpoint.
        (path / MANIFEST).unlink()
        shutil.rmtree(path)
