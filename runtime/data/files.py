"""Which files a data path means: one file, a folder of shards, a folder of the package `datasets`, or a pattern.

`path_in_full` makes a path absolute. A path of the form `module:Class` is a source of one's own (`own_source.py`).
"""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from verst.runtime.data.own_source import is_own_source

COMPRESSED = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".parquet", ".arrow", ".ipc", ".feather")
READABLE = (
    "must end in .jsonl or .json, also with .gz or .zst after it, or in .parquet, .arrow, .ipc or .feather"
)
# What else lies in folders of data, and holds no rows.
_NO_ROWS = {"dataset_info.json", "dataset_infos.json", "state.json", "README.md", "LICENSE", "LICENSE.txt"}


class DataError(ValueError):
    """A data file is missing or faulty, or lacks something that the recipe needs."""


def path_in_full(path: str) -> str:
    """The absolute path; a source of one's own stays as it is."""
    return path if is_own_source(path) else str(Path(path).expanduser().absolute())


def files_of(path: Path | str) -> list[Path]:
    """The files that hold the rows, in the rows' order. Raises DataError if there is none, or one is of no known kind.

    A folder's shards, and the files that a pattern such as `shard-*.jsonl` matches, come in the order of their names.
    """
    path = Path(path)
    if path.is_file():
        return [_known(path)]
    if path.is_dir():
        return _of_folder(path)
    if glob.has_magic(str(path)):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{path}: no file matches this pattern")
        return [_known(file) for file in found]
    raise DataError(f"{path}: there is no such file")


def kind_of(path: Path) -> str:
    """The ending that says the format: ".json" for `rows.json.gz`."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _known(path: Path) -> Path:
    kind = kind_of(path)
    if kind not in FORMATS or (path.suffix in COMPRESSED and not kind.startswith(".json")):
        raise DataError(f"{path}: the file name {READABLE}")
    return path


def _of_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        told = " or ".join(str(folder / split) for split in splits)
        raise DataError(f"{folder} holds several data sets: name one of them, {told}")
    if (folder / "state.json").is_file():
        return _saved_by_datasets(folder)
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name not in _NO_ROWS and not file.name.startswith((".", "_"))
    ]
    if not files:
        inside = ", ".join(
            f.name for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")
        )
        raise DataError(
            f"{folder}: the folder has no data files{f'; it has folders: {inside}' if inside else ''}"
        )
    return [_known(file) for file in files]


def _saved_by_datasets(folder: Path) -> list[Path]:
    """The files of a folder that `Dataset.save_to_disk` wrote."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(
            f"{folder}: it keeps its rows in another order than its files, as old versions of `datasets` did: save it "
            "once more with a recent one"
        )
    try:
        files = [folder / entry["filename"] for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}/state.json: it does not name the data files") from error
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{missing[0]}: there is no such file, but state.json names it")
    return [_known(file) for file in files]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    return found if isinstance(found, dict) else {}
