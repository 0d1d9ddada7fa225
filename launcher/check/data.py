"""Checks the recipe's prompt files before anything starts. A message names a broken row by file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.algorithms.config import WarmStartConfig
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.demonstrations import checked_demonstration, demonstration_style
from verst.runtime.data.files import files_of, path_in_full
from verst.runtime.data.own_source import is_own_source
from verst.runtime.data.prompts import checked_row
from verst.runtime.data.records import DataError, Record, column, read_records

_FIRST_ROWS = 1000


def data_faults(recipe: Recipe) -> Iterator[Fault]:
    """The missing files, and the first broken row among the first thousand of each existing file.

    `rows.py` reads them all, with the tokenizer.
    """
    data, warm_start = recipe.data, recipe.algorithm.warm_start
    sections: dict[str, PromptFileConfig] = {**data.train.sections()}
    sections |= {data.eval_place(name): each for name, each in data.eval_sets.items()}
    for section, config in sections.items():
        yield from _template(section, config)
        yield from _file(f"{section}.path", config.path, partial(_row, config=config, section=section))
    if warm_start is not None:
        style = demonstration_style(warm_start, data.train)
        yield from _file(
            "algorithm.warm_start.path",
            warm_start.path,
            lambda record: _demonstration(record, warm_start, style),
        )


def _template(section: str, config: PromptFileConfig) -> Iterator[Fault]:
    """The faults in how a file's prompts are rendered, as far as they show without the tokenizer."""
    file = config.chat_template_file
    if file is not None and not Path(file).expanduser().is_file():
        yield Fault(
            f"{section}.chat_template_file",
            f"is {file!r}: {Path(file).expanduser().absolute()} is not a file",
        )
    for key in ("chat_template_file", "chat_template_kwargs"):
        if getattr(config, key) and not config.chat_template:
            yield Fault(
                f"{section}.{key}",
                "has no effect with chat_template false: leave it out, or set that to true",
            )


def _file(place: str, written: str, check: Callable[[Record], object]) -> Iterator[Fault]:
    if is_own_source(written):  # `row_program.py` reads it: this process imports no module of a user
        return
    path = path_in_full(written)
    try:
        files_of(path)
    except DataError as error:
        yield Fault(place, f"is {written!r}: {error}")
        return
    count = 0
    try:
        for record in islice(read_records(path), _FIRST_ROWS):
            count += 1
            check(record)
    except DataError as error:
        yield Fault(place, str(error))
        return
    if count == 0:
        yield Fault(place, f"is {written!r}: {path} has no rows")


def _row(record: Record, config: PromptFileConfig, section: str) -> None:
    _known_column(record, config.prompt_key, f"{section}.prompt_key")
    if config.label_key is not None:
        _known_column(record, config.label_key, f"{section}.label_key", " (null: the rows have no label)")
    checked_row(record, config)


def _demonstration(record: Record, config: WarmStartConfig, style: PromptFileConfig) -> None:
    keys = ("messages_key",) if config.messages_key is not None else ("prompt_key", "response_key")
    for key in keys:
        _known_column(record, getattr(config, key), f"algorithm.warm_start.{key}")
    checked_demonstration(record, config, style)


def _known_column(record: Record, name: str, key: str, otherwise: str = "") -> None:
    """Raises DataError with the key that names the column, if there is no such column."""
    try:
        column(record, name)
    except DataError as error:
        raise DataError(f"{error}; set {key} to one of them{otherwise}") from error
