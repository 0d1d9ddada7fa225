"""Checks the files of the model folders before anything starts: weights that are there, whole and in one set, and a
tokenizer. `parsers.py` checks whether the tensors fit the family, which imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from verst.launcher.plan.model_files import model_files, tokenizer_file
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe, reference_sections
from verst.sync.hf.headers import stored_tensors


def model_files_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of the folders that the recipe names. A hub id is checked when it has been fetched."""
    yield from _folder("model.path", recipe.model.path)
    if recipe.rollout.model_path is not None:
        yield from _folder("rollout.model_path", recipe.rollout.model_path)
    for section, reference in reference_sections(recipe).items():
        if reference.path is not None:
            yield from _like_the_model(recipe, f"{section}.path", reference.path)
    critic = recipe.algorithm.critic
    if critic is not None and critic.path is not None:
        yield from _like_the_model(recipe, "algorithm.critic.path", critic.path)

    teacher = recipe.algorithm.teacher
    if teacher is not None and model_folder(teacher.path) is None:
        yield Fault(
            "algorithm.teacher.path",
            f"is {teacher.path!r}: there is no such folder; it must be a local Hugging Face folder",
        )


def _like_the_model(recipe: Recipe, place: str, path: str) -> Iterator[Fault]:
    """The faults of another model's folder whose tensors must be those of the model that is trained."""
    folder, model = model_folder(path), model_folder(recipe.model.path)
    if folder is None:
        yield Fault(place, f"is {path!r}: there is no such folder; it must be a local Hugging Face folder")
        return
    try:
        found = {name: tensor.shape for name, tensor in stored_tensors(folder).items()}
        wanted = found if model is None else {n: t.shape for n, t in stored_tensors(model).items()}
    except (ValueError, OSError) as error:
        yield Fault(place, f"is {path!r}: {error}")
        return
    differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if differing:
        yield Fault(
            place,
            f"is {path!r}: {len(differing)} tensors are not those of model.path, such as {differing[0]}; it must have "
            "the same architecture",
        )


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
