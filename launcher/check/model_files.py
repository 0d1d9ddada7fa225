"""Checks the files of the model folders before anything starts: weights that are there, whole and in one set, and a
tokenizer. `parsers.py` checks whether the tensors fit the family, which imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verst.launcher.plan.model_files import model_files, tokenizer_file
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe


def model_files_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of the folders that the recipe names. A hub id is checked when it has been fetched."""
    yield from _folder("model.path", recipe.model.path)
    if recipe.rollout.model_path is not None:
        yield from _folder("rollout.model_path", recipe.rollout.model_path)


def _folder(place: str, path: str) -> Iterator[Fault]:
    folder = model_folder(path)
    if folder is None:
        return
    try:
        model_files(folder)
    except (ValueError, OSError) as error:
        yield Fault(place, f"is {path!r}: {error}")
    if tokenizer_file(folder) is None:
        yield Fault(place, f"is {path!r}: {folder} has no tokenizer{_hint(folder)}")


def _hint(folder: Path) -> str:
    if (folder / "tokenizer_config.json").is_file():
        return ": only tokenizer_config.json, which needs a vocabulary beside it (tokenizer.json or tokenizer.model)"
    return " (tokenizer.json or tokenizer.model): copy it from the model that the weights come from"
