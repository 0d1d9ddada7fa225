"""Checkpoint folders: which are complete, which is the newest, what to remove. Imports no torch.

```
checkpoints/step-000100/          complete: appears by one rename
    checkpoint.json               this module's Manifest
    controller.bin                the controller's state, opaque here
    metadata.json __0_0.distcp …  Megatron's distributed format: model, optimizer, random states
checkpoints/.step-000200.1f3a….partial   being written, or left behind by a crash
checkpoints/.step-000100.replaced        the earlier one of that name while the new one takes its place
```
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from verst.sync.files.durable import flush, naming

MANIFEST = "checkpoint.json"
CONTROLLER = "controller.bin"
FORMAT = 2

_PARTIAL = ".partial"
_REPLACED = ".replaced"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is not a tensor in a checkpoint."""

    format: int
    model: str  # a digest of the names and shapes of its Hugging Face tensors
    version: int  # the weight version, equal to the optimiser steps of the run
    optimizer_steps: int  # steps in Adam's bias correction
    scheduler_steps: int
    parallel: dict[str, int | bool | None]  # the layout that wrote it; random states fit no other


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, None when there is none."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def _complete(folder: Path) -> list[Path]:
    """Oldest first. Names hold the step in six digits or more, so the longer name is the newer."""
    found = [p.parent for p in folder.glob(f"step-*/{MANIFEST}")]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def read_manifest(path: Path) -> Manifest:
    """Raises ValueError when `path` is no complete checkpoint of a format known here."""
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
    """Where the checkpoint `path` is written; `token` sets it apart from one that another life left behind."""
    return path.with_name(f".{path.name}.{token:x}{_PARTIAL}")


def complete(partial: Path, path: Path, manifest: Manifest, controller: bytes) -> None:
    """Makes a written folder the checkpoint `path`, replacing an earlier one of that name."""
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
    """Removes what crashes left behind, and takes back a checkpoint whose replacement never came.

    Returns the names removed. Only when nothing is being written to the folder.
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
    """Removes a checkpoint that could not be written. What cannot be removed goes at the next start (`clean`)."""
    shutil.rmtree(partial, ignore_errors=True)


def prune(folder: Path, keep: int) -> None:
    """Removes all complete checkpoints but the newest `keep`."""
    for path in _complete(folder)[:-keep]:
        # The manifest goes first: a half-removed folder is then no checkpoint.
        (path / MANIFEST).unlink()
        shutil.rmtree(path)
