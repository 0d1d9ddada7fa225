"""Makes the prompt jobs for the rollout workers and the demonstrations of the warm start from the data files."""

from __future__ import annotations

import zlib
from itertools import islice
from typing import NamedTuple

import numpy as np
from transformers import AutoTokenizer

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.data.cursor import row_of
from verst.runtime.data.demonstrations import Demonstration, load_demonstrations
from verst.runtime.data.prompts import load_prompts
from verst.runtime.data.records import DataError, read_records
from verst.runtime.messages.group_ids import prompt_of
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.sample import Group, Sample


class LeftOut(NamedTuple):
    """Rows of a prompt file that are too long to be used."""

    what: str  # "training" or "evaluation"
    path: str
    rows: int
    of: int  # rows of the file
    limit: int  # max_prompt_tokens

    def __str__(self) -> str:
        return (
            f"{self.rows} of {self.of} {self.what} prompts are left out, because they are longer than "
            f"max_prompt_tokens ({self.limit}): {self.path}"
        )


class PromptSource:
    """Training prompts, evaluation prompts and demonstrations. Each depends on its number and the seed alone."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads the data files. Raises DataError (a ValueError) with file and line of a faulty row."""
        self.tokenizer = tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        self._algorithm = config.algorithm
        self._shown_eval = config.metrics.shown_eval
        self._train_config, self._eval_config = config.data.train, config.data.eval
        self._train = load_prompts(config.data.train, tokenizer)
        self._eval = load_prompts(config.data.eval, tokenizer) if config.data.eval else None
        self._max_tokens: int | None = None
        warm_start = config.algorithm.warm_start
        self._demonstrations: list[Demonstration] = []
        if warm_start is not None:
            self._demonstrations = load_demonstrations(warm_start, config.data.train, tokenizer)

    @property
    def eval_prompts(self) -> int:
        """The number of rows of the evaluation file; 0 if there is none."""
        return len(self._eval) if self._eval else 0

    def limit(self, max_tokens: int) -> None:
        """Notes the longest sample that the trainer can take. Raises DataError for a demonstration that is longer."""
        self._max_tokens = max_tokens
        for row, shown in enumerate(self._demonstrations):
            tokens = len(shown.prompt_ids) + len(shown.response_ids)
            if tokens > max_tokens:
                assert self._algorithm.warm_start is not None
                where, _ = next(islice(read_records(self._algorithm.warm_start.path), row, None))
                raise DataError(
                    f"{where}: the demonstration has {tokens} tokens; the trainer takes {max_tokens} "
                    "(trainer.max_tokens_per_microbatch, less padding)"
                )

    def left_out(self) -> list[LeftOut]:
        """How many rows of each prompt file are longer than max_prompt_tokens, if there are any."""
        files = [("training", self._train_config, self._train)]
        if self._eval is not None and self._eval_config is not None:
            files.append(("evaluation", self._eval_config, self._eval))
        return [
            LeftOut(what, config.path, rows.dropped, len(rows) + rows.dropped, config.max_prompt_tokens)
            for what, config, rows in files
            if rows.dropped
        ]

    def job(self, id: int, evaluation: bool) -> PromptJob:
        """Makes the job of training group `id`, or of row `id` of the evaluation file.

        Groups of the same prompt have different seeds, because the seed depends on the group's number.
        """
        if evaluation:
            assert self._eval is not None
            assert self._eval_config is not None
            prompt, samples = self._eval[id], self._eval_config.samples_per_prompt
        else:
            config = self._train_config
            row = row_of(prompt_of(id), len(self._train), self._algorithm.seed, config.shuffle)
            prompt, samples = self._train[row], self._algorithm.samples_per_prompt
        kind = "eval" if evaluation else "train"
        seeds = [zlib.crc32(f"{self._algorithm.seed}/{kind}/{id}/{i}".encode()) >> 1 for i in range(samples)]
        return PromptJob(
            id=id,
            prompt=prompt,
            samples=samples,
            evaluation=evaluation,
            seeds=seeds,
            max_tokens=None if evaluation else self._max_tokens,
            shown=evaluation and id < self._shown_eval,
        )

    def demonstrations(self, step: int) -> list[Group]:
        """The batch of warm-start step `step`: groups of one sample each, numbered below zero."""
        assert self._algorithm.warm_start is not None
        size = self._algorithm.warm_start.batch_size
        groups = []
        for number in range(step * size, (step + 1) * size):
            row = row_of(number, len(self._demonstrations), self._algorithm.seed)
            groups.append(_as_group(-1 - number, self._demonstrations[row], step))
        return groups


def _as_group(id: int, shown: Demonstration, version: int) -> Group:
    tokens = len(shown.response_ids)
    sample = Sample(
        group=id,
        index=0,
        prompt_ids=shown.prompt_ids,
        response_ids=shown.response_ids,
        logprobs=np.zeros(tokens, np.float32),
        loss_mask=np.ones(tokens, np.uint8),
        weight_versions=np.full(tokens, version, np.int32),
        reward=0.0,
        finish="stop",
        signals={"temperature": np.ones(tokens, np.float32)},  # the model's own distribution
    )
    return Group(id=id, samples=[sample])
