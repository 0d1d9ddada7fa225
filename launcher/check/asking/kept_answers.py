"""Keeps the answers of the checks that take seconds, for the same question again.

These are Megatron's and SGLang's parsers, which import much, and the check of the rows, which renders and tokenises
them. An answer is a small file in the user's cache folder (`$XDG_CACHE_HOME/verst/checks`, by default under
`~/.cache`), named by a digest of everything that it depends on: the part of the recipe that the check sees, the files
of the model folders and the data files, the versions of the packages, Verst's own code, and the GPUs in sight. Several
processes may read and write at once: a file appears by one rename, and two writers of the same name write the same
answer. Without a writable cache folder every check is made.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

import verst.launcher
import verst.recipes
import verst.runtime
import verst.slurm
import verst.sync
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.recipe import Recipe, data_files, prompt_sections
from verst.runtime.data.files import DataError, files_of, path_in_full
from verst.runtime.data.own_source import is_own_source
from verst.runtime.run.folder import write_atomically

_PACKAGES = (
    "torch", "megatron-core", "sglang", "transformers", "tokenizers", "jinja2", "transformer-engine", "pydantic",
    "pyarrow",
)  # fmt: skip
_MOST = 400  # kept answers; beyond it the oldest go
# The code of Verst that an answer depends on: whole packages, because the checks import from all over them.
_CODE = tuple(
    Path(package.__path__[0])
    for package in (verst.launcher, verst.runtime, verst.sync, verst.slurm, verst.recipes)
)


def parser_question(parser: str, recipe: Recipe) -> str | None:
    """The name under which a parser's answer is kept. None if it can't be known what the answer depends on.

    That is so for a model family of the user's own, whose code may import anything, and for a model on the hub.
    """
    family = recipe.model.family
    teacher = recipe.algorithm.teacher
    paths = [] if parser == "sglang" else [recipe.model.path, recipe.rollout.model_path]
    if parser == "megatron" and teacher is not None:
        paths.append(teacher.path)
    folders = [model_folder(path) for path in paths if path is not None]
    if None in folders or not (family is None or family.startswith("verst.")):
        return None
    whole = recipe.resolved()
    seen = {key: whole[key] for key in ("model", "trainer", "weights")}
    seen["rollout"] = {
        key: value for key, value in whole.get("rollout", {}).items() if key in ("sglang", "model_path")
    }
    if parser == "sglang":
        seen = {"rollout": seen["rollout"]}
    algorithm = recipe.algorithm
    updates = None
    if parser == "megatron":
        seen |= {name: whole["algorithm"].get(name) for name in ("critic", "teacher")}
        updates = [algorithm.updates, algorithm.critic_updates, algorithm.trains_reward_model]
    return _name(parser, seen, updates, folders)


def rows_question(recipe: Recipe) -> str | None:
    """The name under which the report on the rows is kept. None for a model on the hub, whose files are not here."""
    folder = model_folder(recipe.model.path)
    if folder is None:
        return None
    served = None if recipe.rollout.model_path is None else model_folder(recipe.rollout.model_path)
    teacher = recipe.algorithm.teacher
    teaching = None if teacher is None else model_folder(teacher.path)
    whole = recipe.resolved()
    seen = {key: whole.get(key) for key in ("model", "rollout", "trainer", "data")}
    paths = [section.path for section in data_files(recipe)]
    templates = [style.chat_template_file for style in prompt_sections(recipe).values()]
    templates += [span.stage.data.chat_template_file for span in recipe.algorithm.spans]
    paths += [template for template in templates if template is not None]
    if any(is_own_source(path) for path in paths):
        return None  # its rows may be others each time
    files = [file for path in paths for file in _files_at(path_in_full(path))]
    about = [[str(file), *_files_in(file.parent, glob.escape(file.name))] for file in files]
    more = [whole["algorithm"]["stages"], whole["algorithm"].get("teacher"), about]
    return _name("rows", seen, more, [folder, served, teaching])


def _files_at(path: str) -> list[Path]:
    """The files of a data path; also a chat template, and what is not there."""
    try:
        return files_of(path)
    except DataError:
        return [Path(path)]


def _name(check: str, seen: Any, more: Any, folders: Iterable[Path | None]) -> str:
    parts = [
        check,
        seen,
        more,
        [_model_files(folder) for folder in folders if folder is not None],
        sys.executable,
        [_version(package) for package in _PACKAGES],
        [_files_in(folder, "**/*.py") for folder in _CODE],
        [os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(glob.glob("/dev/nvidia[0-9]*"))],
    ]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def recall[T](name: str, kind: type[T]) -> T | None:
    """The kept answer, or None."""
    try:
        return msgspec.json.decode((cache_folder() / f"{name}.json").read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def keep(name: str, answer: Any) -> None:
    """Keeps an answer. Does nothing where the cache folder cannot be written."""
    folder = cache_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.json", msgspec.json.encode(answer))
        _remove_oldest(folder)


def cache_folder() -> Path:
    """The folder of the kept answers."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "verst" / "checks"


def _remove_oldest(folder: Path) -> None:
    files = list(folder.glob("*.json"))
    if len(files) > _MOST:
        ages = {file: file.stat().st_mtime for file in files}
        for file in sorted(files, key=lambda file: ages[file])[: -_MOST // 2]:
            file.unlink(missing_ok=True)


def _model_files(folder: Path) -> list[object]:
    return [str(folder), *_files_in(folder, "*"), *_files_in(folder, "additional_chat_templates/*")]


def _files_in(folder: Path, pattern: str) -> list[object]:
    """Name, size and time of each file, which change with its content."""
    found: list[object] = []
    for file in sorted(folder.glob(pattern)):
        with contextlib.suppress(OSError):  # removed meanwhile
            about = file.stat()
            found.append([str(file.relative_to(folder)), about.st_size, about.st_mtime_ns])
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
