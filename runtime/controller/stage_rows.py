"""The rows of stages that have their own: each step's batch, and the held-out rows. They go through the store.

Which rows a step trains on depends on its number and the seed alone, so a resumed run needs no state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import Span
from verst.runtime.controller.data_record import DataRecord, FileRecord, digest_of
from verst.runtime.data.cursor import row_of
from verst.runtime.data.demonstrations import Demonstration, Demonstrations, load_demonstrations
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
        self._train = [load_demonstrations(span.stage.data, tokenizer, most) for span in self._spans]
        self._held_out = [_held_out(span, tokenizer, most) for span in self._spans]

    def limit(self, most: int) -> None:
        """Raises DataError for a row of more than `most` tokens, which no micro-batch can hold."""
        for span, *files in zip(self._spans, self._train, self._held_out, strict=True):
            for row in (row for file in files if file is not None for row in file.rows):
                if row.length > most:
                    raise DataError(
                        f"{row.where} has {row.length} tokens, and a micro-batch holds {most}, because lengths are "
                        f"padded: set {span.place}.data.max_tokens to {most}, which leaves such rows out, or raise "
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
        return (version + 1 - span.first) * span.stage.batch_size / len(self._train[span.number])

    def batch(self, version: int) -> list[Group]:
        """The rows on which this version is trained: groups of one sample each."""
        span = self.span(version)
        rows, size = self._train[span.number].rows, span.stage.batch_size
        first = (version - span.first) * size
        below = -1 - span.number * _ROWS_OF_A_STAGE
        return [
            _as_group(below - number, rows[row_of(number, len(rows), self._seed)], version)
            for number in range(first, first + size)
        ]

    def held_out(self, span: Span, version: int) -> list[Group]:
        """The stage's held-out rows, as groups of one sample each."""
        held_out = self._held_out[span.number]
        assert held_out is not None
        below = -1 - _HELD_OUT - span.number * _ROWS_OF_A_STAGE
        return [_as_group(below - number, row, version) for number, row in enumerate(held_out.rows)]


def _held_out(span: Span, tokenizer: Any, most: int) -> Demonstrations | None:
    held_out = span.stage.held_out
    return None if held_out is None else load_demonstrations(held_out, tokenizer, most)


def _file_record(path: str, file: Demonstrations) -> FileRecord:
    return FileRecord(
        path=path,
        bytes=size_of(path),
        rows=len(file),
        too_long=file.too_long,
        digest=digest_of(
            (row.prompt_ids.tolist(), row.response_ids.tolist(), row.loss_mask.tolist()) for row in file.rows
        ),
    )


def _as_group(id: int, shown: Demonstration, version: int) -> Group:
    tokens = len(shown.response_ids)
    sample = Sample(
        group=id,
        index=0,
        prompt_ids=shown.prompt_ids,
        response_ids=shown.response_ids,
        logprobs=np.zeros(tokens, np.float32),
        loss_mask=shown.loss_mask,
        weight_versions=np.full(tokens, version, np.int32),
        reward=0.0,
        finish="stop",
        signals={"temperature": np.ones(tokens, np.float32)},  # the model's own distribution
    )
    return Group(id=id, samples=[sample])
