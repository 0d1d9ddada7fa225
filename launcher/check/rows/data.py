"""Checks the recipe's prompt files before anything starts. A message names a broken row by file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe, prompt_sections
from verst.runtime.algorithms.stages import (
    OfflineStage,
    PairFileConfig,
    PolicyStage,
    RowFileConfig,
    ScoredPairFileConfig,
    SftFileConfig,
)
from verst.runtime.data.config import PromptFileConfig, SourceConfig
from verst.runtime.data.files import files_of, path_in_full
from verst.runtime.data.own_source import is_own_source
from verst.runtime.data.pair_rows import checked_pair
from verst.runtime.data.prompts import checked_row
from verst.runtime.data.records import DataError, Record, column, read_records
from verst.runtime.data.stage_rows import checked_demonstration

_FIRST_ROWS = 1000
_OR_CONVERSATIONS = " (null: both answers are whole conversations)"
_OR_MESSAGES = ", or messages_key to a column of whole conversations"


def data_faults(recipe: Recipe) -> Iterator[Fault]:
    """The missing files, and the first broken row among the first thousand of each existing file.

    `rows.py` reads them all, with the tokenizer.
    """
    for section, config in prompt_sections(recipe).items():
        if isinstance(config, SourceConfig) and config.curriculum is not None and not config.shuffle:
            yield Fault(f"{section}.shuffle", "is false, but the curriculum decides the order: leave it out")
        yield from _template(section, config)
        yield from _file(f"{section}.path", config.path, partial(_row, config=config, section=section))
    for number, stage in enumerate(recipe.algorithm.stages):
        if not isinstance(stage, PolicyStage):
            yield from _stage(f"algorithm.stages.{number}", stage)


def _stage(place: str, stage: OfflineStage) -> Iterator[Fault]:
    yield from _template(f"{place}.data", stage.data)
    if isinstance(stage.data, SftFileConfig):
        yield from _columns(f"{place}.data", stage.data)
    for key, file in (("data", stage.data), ("eval", stage.held_out)):
        if file is not None:
            check = partial(_row_of_stage, config=file, section=f"{place}.data")
            yield from _file(f"{place}.{key}.path", file.path, check)


def _columns(place: str, file: SftFileConfig) -> Iterator[Fault]:
    """Keys that have no use, because the rows are in another form."""
    if file.messages_key is not None:
        for key in ("prompt_key", "response_key"):
            if getattr(file, key) != type(file).model_fields[key].default:
                yield Fault(f"{place}.{key}", "has no effect with messages_key: leave one of them out")
    elif file.train_on != "all":
        yield Fault(f"{place}.train_on", "has no effect without messages_key: a row has only one response")


def _template(section: str, config: PromptFileConfig | RowFileConfig) -> Iterator[Fault]:
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


def _row_of_stage(record: Record, config: SftFileConfig | PairFileConfig, section: str) -> None:
    if isinstance(config, SftFileConfig):
        _demonstration(record, config, section)
        return
    if config.prompt_key is not None:
        _known_column(record, config.prompt_key, f"{section}.prompt_key", _OR_CONVERSATIONS)
    _known_column(record, config.chosen_key, f"{section}.chosen_key")
    _known_column(record, config.rejected_key, f"{section}.rejected_key")
    if isinstance(config, ScoredPairFileConfig) and config.margin_key is not None:
        _known_column(record, config.margin_key, f"{section}.margin_key", " (null: there are no margins)")
    checked_pair(record, config)


def _demonstration(record: Record, config: SftFileConfig, section: str) -> None:
    keys = ("messages_key",) if config.messages_key is not None else ("prompt_key", "response_key")
    for key in keys:
        _known_column(record, getattr(config, key), f"{section}.{key}", _OR_MESSAGES if len(keys) > 1 else "")
    checked_demonstration(record, config)


def _known_column(record: Record, name: str, key: str, otherwise: str = "") -> None:
    """Raises DataError with the key that names the column, if there is no such column."""
    try:
        column(record, name)
    except DataError as error:
        raise DataError(f"{error}; set {key} to one of them{otherwise}") from error
