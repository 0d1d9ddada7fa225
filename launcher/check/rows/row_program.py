"""The program that checks the rows of the data files: `python -m verst.launcher.check.rows.row_program < RECIPE`.

It prints a `RowReport` as JSON in the last line. What it reads and how it renders and tokenises is what the run does.
The rows are read, for a minute a file, and the first ones tokenised, too. The report says how many, and where
reading had to end before the file did.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any

import msgspec
import numpy as np
import yaml

from verst.launcher.check.model.description import description_if_any
from verst.launcher.check.rows.context import engine_context
from verst.launcher.check.rows.ends import ends_that_differ
from verst.launcher.check.rows.labels import WholeFloats
from verst.launcher.check.rows.rows import RowReport
from verst.launcher.check.rows.teacher_tokens import teacher_token_faults
from verst.launcher.check.rows.tokenizers import tokenizer_or_fault
from verst.launcher.plan.model_source import model_folder
from verst.launcher.plan.parallelism import argument, megatron_parallelism
from verst.launcher.plan.plan import world_size
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe, data_files, prompt_sections
from verst.runtime.algorithms.stages import PairFileConfig, PolicyStage, SftFileConfig
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.config import EvalConfig, PromptFileConfig, SourceConfig
from verst.runtime.data.demonstrations import read_demonstrations
from verst.runtime.data.files import files_of, path_in_full
from verst.runtime.data.own_source import is_own_source
from verst.runtime.data.preferences import read_pairs
from verst.runtime.data.prompts import check_length, checked_row, no_usable_prompt, tokenised
from verst.runtime.data.records import DataError, read_records
from verst.runtime.data.stage_rows import longest_row
from verst.runtime.rollout.engine.context import longest_prompt

_TOKENISED = 20_000  # rows of a file
_READING_S = 60.0  # for a file
_ROWS_AT_ONCE = 256


def check_rows(recipe: Recipe, tokenizer: Any) -> RowReport:
    """Checks the rows of all data files that exist. Without a tokenizer (None) they are read, but not rendered."""
    report = RowReport()
    description = description_if_any(recipe.model.path)
    context = engine_context(recipe, description)
    known = _Vocabulary(tokenizer, (description or {}).get("vocab_size"))
    for section, config in prompt_sections(recipe).items():
        new = (
            isinstance(config, SourceConfig | EvalConfig) and config.max_new_tokens
        ) or recipe.rollout.sampling.max_new_tokens
        takes = None if context is None else longest_prompt(context, new)
        if can_be_read(config.path):
            _prompt_file(section, config, known, takes, report)
    folder = model_folder(recipe.model.path)
    if tokenizer is not None and folder is not None and recipe.algorithm.generates:
        report.said += ends_that_differ(recipe, folder, tokenizer)
    for number, stage in enumerate(recipe.algorithm.stages):
        if not isinstance(stage, PolicyStage) and tokenizer is not None:
            for key, rows in (("data", stage.data), ("eval", stage.held_out)):
                if rows is not None and can_be_read(rows.path):
                    _rows_of_stage(f"algorithm.stages.{number}.{key}", rows, known, recipe, report)
    return report


@dataclass(frozen=True)
class _Vocabulary:
    """The tokenizer, and how many token ids the model has; None where that is not known."""

    tokenizer: Any
    size: int | None

    def check(self, where: str, *ids: Sequence[int] | np.ndarray) -> None:
        """Raises DataError for a token that the model does not have. Engines would stop at it, or take nothing for
        it."""
        largest = max((int(np.max(some)) for some in ids if len(some)), default=0)
        if self.size is not None and largest >= self.size:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise DataError(
                f"{where}: has the token {token!r} of id {largest}, but the model has only {self.size} (vocab_size in "
                "its config.json): a token that is added to a tokenizer needs a row in the model's embedding"
            )


def can_be_read(path: str) -> bool:
    """Whether there are files at this data path, or it is a source of the user's own. If not, another check tells."""
    try:
        return is_own_source(path) or bool(files_of(path))
    except DataError:
        return False


def _prompt_file(
    section: str,
    config: PromptFileConfig,
    known: _Vocabulary,
    takes: int | None,
    report: RowReport,
) -> None:
    """Adds to `report` what there is to say of one prompt file."""
    began = time.monotonic()
    read = measured = too_long = 0
    out_of_time = False
    whole = WholeFloats()
    try:
        template = None if known.tokenizer is None else ChatTemplate(config, known.tokenizer)
        for some in batched(
            (checked_row(record, config) for record in read_records(config.path)), _ROWS_AT_ONCE
        ):
            read += len(some)
            for row in some:
                whole.look(row.label)
            if template is not None and measured < _TOKENISED:
                measured += len(some)
                for row, _, ids in tokenised(some, template):
                    known.check(row.where, ids)
                    too_long += not check_length(row, len(ids), config, takes)
            if time.monotonic() - began > _READING_S:
                out_of_time = True
                break
        if read and too_long == read:
            raise DataError(no_usable_prompt(config, too_long))
    except DataError as error:
        report.faults.append(Fault(f"{section}.path", str(error)))
    report.said += _summary(section, config, read, measured, too_long, out_of_time)
    if whole.found and config.path.endswith(".parquet"):
        report.said.append(
            f"{section}: all labels are whole numbers stored as floats, such as {whole.example!r}; pandas makes them "
            "of integers with a gap, and as text they are not those integers"
        )


def _summary(
    section: str, config: PromptFileConfig, read: int, measured: int, too_long: int, out_of_time: bool
) -> Iterator[str]:
    if too_long:
        yield (
            f"{section}: {too_long:,} of {measured:,} prompts are longer than max_prompt_tokens "
            f"({config.max_prompt_tokens:,}) and will be left out"
        )
    if not out_of_time and 0 < measured < read:
        yield f"{section}: the first {measured:,} of {read:,} prompts were tokenised; the run tokenises all"
    if out_of_time:
        yield (
            f"{section}: only the first {read:,} rows of {config.path} were read, {measured:,} of them tokenised; the "
            "run reads all when it starts"
        )


def _rows_of_stage(
    section: str, rows: SftFileConfig | PairFileConfig, known: _Vocabulary, recipe: Recipe, report: RowReport
) -> None:
    """Adds to `report` what there is to say of the rows of a stage."""
    began = time.monotonic()
    longest = longest_row(rows, _longest_trained(recipe, 2 if isinstance(rows, PairFileConfig) else 1))
    number = too_long = 0
    try:
        for number, length in enumerate(_lengths(rows, known), 1):
            too_long += length > longest
            if number == _TOKENISED or time.monotonic() - began > _READING_S:
                report.said.append(
                    f"{section}: the first {number:,} rows were checked; the run reads all when it starts"
                )
                break
        if too_long == number:
            raise DataError(f"{rows.path}: no usable row; {too_long:,} are longer than {longest:,} tokens")
    except DataError as error:
        report.faults.append(Fault(f"{section}.path", str(error)))
        return
    if too_long:
        report.said.append(
            f"{section}: {too_long:,} of {number:,} rows are longer than {longest:,} tokens and will be left out"
        )


def _lengths(rows: SftFileConfig | PairFileConfig, known: _Vocabulary) -> Iterator[int]:
    """The tokens of each row, of a pair those of both answers. Raises DataError for one that the model lacks."""
    if isinstance(rows, PairFileConfig):
        for pair in read_pairs(rows, known.tokenizer):
            for answer in (pair.chosen, pair.rejected):
                known.check(answer.where, answer.prompt_ids, answer.response_ids)
            yield pair.length
    else:
        for shown in read_demonstrations(rows, known.tokenizer):
            known.check(shown.where, shown.prompt_ids, shown.response_ids)
            yield shown.length


def _longest_trained(recipe: Recipe, sequences: int) -> int:
    """The most tokens of a row of so many sequences that a micro-batch holds in any case: each of them is padded."""
    grid = megatron_parallelism(recipe.trainer.megatron, world_size(recipe))
    multiple = 2 * grid.cp if grid.cp > 1 else 1
    if argument(recipe.trainer.megatron, "sequence-parallel") is True:
        multiple *= grid.tp
    return recipe.trainer.max_tokens_per_microbatch // multiple * multiple - (sequences - 1) * (multiple - 1)


def _load_tokenizer(recipe: Recipe) -> tuple[Any, RowReport]:
    """The model's tokenizer; None, and why, if there is none here."""
    folder = model_folder(recipe.model.path)
    if folder is None:
        return None, RowReport(said=["data: the rows were not tokenised, because the model is not here yet"])
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it takes longer than all the rest
    try:
        tokenizer, faults = tokenizer_or_fault("model.path", recipe.model.path, folder)
        return tokenizer, RowReport(faults)
    finally:
        del sys.modules["torch"]


def with_absolute_data(recipe: Recipe) -> Recipe:
    """The recipe with the places of its data files absolute, as messages name them."""
    recipe = recipe.model_copy(deep=True)
    for section in data_files(recipe):
        section.path = path_in_full(section.path)
    return recipe


def main() -> None:
    """Checks the recipe on stdin."""
    recipe = with_absolute_data(Recipe.model_validate(yaml.safe_load(sys.stdin)))
    tokenizer, report = _load_tokenizer(recipe)
    checked = check_rows(recipe, tokenizer)
    taught = [] if tokenizer is None else teacher_token_faults(recipe, tokenizer)
    report = RowReport(report.faults + checked.faults + taught, report.said + checked.said)
    print("\n" + msgspec.json.encode(report).decode())


if __name__ == "__main__":
    main()
