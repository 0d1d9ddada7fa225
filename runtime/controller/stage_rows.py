"""The rows of stages that have their own: each step's batch, and the held-out rows. They go through the store.

Which rows a step trains on depends on its number and the seed alone, so a resumed run needs no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import PairFileConfig, SftFileConfig, Span
from verst.runtime.controller.data_record import DataRecord, FileRecord, digest_of
from verst.runtime.data.cursor import row_of
from verst.runtime.data.demonstrations import Demonstration, load_demonstrations
from verst.runtime.data.preferences import load_pairs
from verst.runtime.data.records import DataError, size_of
from verst.runtime.messages.sample import Group, Sample

# Groups of rows are numbered below zero: from here on down those of each stage, and further down the held-out ones.
_ROWS_OF_A_STAGE = 10**12
_HELD_OUT = 10**15


class StageRows:
    """The rows of all stages that have their own."""

    def __init__(self, algorithm: AlgorithmConfig, tokenizer: Any, most: int) -> None:
        """Reads the files, and leaves out rows of more than `most` tokens. Raises DataError."""
        self._seed = algorithm.seed
        self._spans = algorithm.spans
        self._train = [_load(span.stage.data, tokenizer, most) for span in self._spans]
        self._held_out = [
            None if span.stage.held_out is None else _load(span.stage.held_out, tokenizer, most)
            for span in self._spans
        ]

    def limit(self, most: int, multiple: int = 1) -> None:
        """Raises DataError for a row that no micro-batch of `most` tokens can hold, with each sequence padded to a
        multiple."""
        for span, *files in zip(self._spans, self._train, self._held_out, strict=True):
            for row in (row.shown for file in files if file is not None for row in file.rows):
                padded = sum(shown.length + -shown.length % multiple for shown in row)
                if padded > most:
                    length = sum(shown.length for shown in row)
                    fitting = most // multiple * multiple - (len(row) - 1) * (multiple - 1)
                    raise DataError(
                        f"{row[0].where} has {length} tokens, and a micro-batch holds {most}, because lengths are "
                        f"padded: set {span.place}.data.max_tokens to {fitting}, which leaves such rows out, or raise "
                        "trainer.max_tokens_per_microbatch"
                    )

    def record(self) -> DataRecord:
        """What the run's record says of the files (`data_record.py`)."""
        record: DataRecord = {}
        for span, train, held_out in zip(self._spans, self._train, self._held_out, strict=True):
            record[f"{span.place}.data"] = _file_record(span.stage.data.path, train)
            if held_out is not None and span.stage.eval is not None:
                record[f"{span.place}.eval"] = _file_record(span.stage.eval.path, held_out)
        return record

    def span(self, version: int) -> Span:
        """The stage that trains this version."""
        return next(span for span in self._spans if span.first <= version < span.end)

    def epochs(self, version: int) -> float:
        """How often the rows of its stage have been passed over when this version is trained."""
        span = self.span(version)
        return (version + 1 - span.first) * span.stage.batch_size / len(self._train[span.number].rows)

    def batch(self, version: int) -> list[Group]:
        """The rows on which this version is trained: groups of one sample, or of the two of a pair."""
        span = self.span(version)
        rows, size = self._train[span.number].rows, span.stage.batch_size
        first = (version - span.first) * size
        below = -1 - span.number * _ROWS_OF_A_STAGE
        return [
            _as_group(below - number, rows[row_of(number, len(rows), self._seed)], version)
            for number in range(first, first + size)
        ]

    def held_out(self, span: Span, version: int) -> list[Group]:
        """The stage's held-out rows, as groups of one sample, or of the two of a pair."""
        held_out = self._held_out[span.number]
        assert held_out is not None
        below = -1 - _HELD_OUT - span.number * _ROWS_OF_A_STAGE
        return [_as_group(below - number, row, version) for number, row in enumerate(held_out.rows)]


class _Row(NamedTuple):
    """The sequences of a row, which are trained on together; of a pair the chosen one is first."""

    shown: tuple[Demonstration, ...]
    margin: float | None = None  # of a pair for a reward model


class _File(NamedTuple):
    """The usable rows of a file."""

    rows: list[_Row]
    too_long: int


def _load(config: SftFileConfig | PairFileConfig, tokenizer: Any, most: int) -> _File:
    if isinstance(config, PairFileConfig):
        pairs = load_pairs(config, tokenizer, most)
        rows = [_Row((pair.chosen, pair.rejected), pair.margin) for pair in pairs.rows]
        return _File(rows, pairs.too_long)
    shown = load_demonstrations(config, tokenizer, most)
    return _File([_Row((row,)) for row in shown.rows], shown.too_long)


def _file_record(path: str, file: _File) -> FileRecord:
    return FileRecord(
        path=path,
        bytes=size_of(path),
        rows=len(file.rows),
        too_long=file.too_long,
        digest=digest_of(part for row in file.rows for part in _digested(row)),
    )


def _digested(row: _Row) -> Iterator[tuple[Any, ...]]:
    for shown in row.shown:
        yield shown.prompt_ids.tolist(), shown.response_ids.tolist(), shown.loss_mask.tolist()
    if row.margin is not None:
        yield (row.margin,)


def _as_group(id: int, row: _Row, version: int) -> Group:
    samples = [_as_sample(id, index, shown, row.margin, version) for index, shown in enumerate(row.shown)]
    return Group(id=id, samples=samples)


def _as_sample(group: int, index: int, shown: Demonstration, margin: float | None, version: int) -> Sample:
    tokens = len(shown.response_ids)
    margins = {} if margin is None else {"margin": np.full(tokens, margin, np.float32)}
    return Sample(
        group=group,
        index=index,
        prompt_ids=shown.prompt_ids,
        response_ids=shown.response_ids,
        logprobs=np.zeros(tokens, np.float32),
        loss_mask=shown.loss_mask,
        weight_versions=np.full(tokens, version, np.int32),
        reward=0.0,
        finish="stop",
        signals={"temperature": np.ones(tokens, np.float32), **margins},  # the model's own distribution
    )
