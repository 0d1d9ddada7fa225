"""Checks the recipe's prompt files before anything starts. A message names a broken row by file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.prompts import prompt_messages
from verst.runtime.data.records import DataError, Record, column, read_records

_READ_WHOLE_BYTES = 64 << 20
_ROWS_OF_LARGER = 1000


def data_faults(recipe: Recipe) -> Iterator[Fault]:
    """The missing files, and the first broken row of each existing file.

    Of a file over 64 MiB, this reads only the first thousand rows. The run itself reads all of them.
    """
    data, warm_start = recipe.data, recipe.algorithm.warm_start
    yield from _file(
        "data.train.path", data.train.path, lambda record: _prompt(record, data.train, "data.train")
    )
    if data.eval is not None:
        held_out = data.eval
        yield from _file(
            "data.eval.path", held_out.path, lambda record: _prompt(record, held_out, "data.eval")
        )
    if warm_start is not None:
        style = data.train.model_copy(update={"prompt_key": warm_start.prompt_key})

        def demonstration(record: Record) -> None:
            _known_column(record, warm_start.prompt_key, "algorithm.warm_start.prompt_key")
            prompt_messages(record, style)
            response = _known_column(record, warm_start.response_key, "algorithm.warm_start.response_key")
            if not isinstance(response, str):
                raise DataError(f"{record[0]}: {warm_start.response_key!r} is {response!r}, not a string")

        yield from _file("algorithm.warm_start.path", warm_start.path, demonstration)


def _file(place: str, written: str, check: Callable[[Record], object]) -> Iterator[Fault]:
    path = Path(written).expanduser().absolute()
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        yield Fault(place, f"is {written!r}: {path} {what}; must be a JSONL or parquet file")
        return
    rows = _ROWS_OF_LARGER if path.stat().st_size > _READ_WHOLE_BYTES else None
    count = 0
    try:
        for record in islice(read_records(path), rows):
            count += 1
            check(record)
    except DataError as error:
        yield Fault(place, str(error))
        return
    if count == 0:
        yield Fault(place, f"is {written!r}: {path} has no rows")


def _prompt(record: Record, config: PromptFileConfig, section: str) -> None:
    _known_column(record, config.prompt_key, f"{section}.prompt_key")
    prompt_messages(record, config)
    if config.label_key is not None:
        _known_column(record, config.label_key, f"{section}.label_key", " (null: the rows have no label)")


def _known_column(record: Record, name: str, key: str, otherwise: str = "") -> Any:
    """A column's value. Raises DataError with the key that names the column, if there is no such column."""
    try:
        return column(record, name)
    except DataError as error:
        raise DataError(f"{error}; set {key} to one of them{otherwise}") from error
