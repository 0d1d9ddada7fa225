"""Makes the prompt jobs for the rollout workers and the demonstrations of the warm start from the data files."""

from __future__ import annotations

import zlib

import numpy as np
from transformers import AutoTokenizer

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.data.cursor import row_of
from verst.runtime.data.demonstrations import Demonstration, load_demonstrations
from verst.runtime.data.prompts import load_prompts
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.sample import Group, Sample


class PromptSource:
    """Training prompts, evaluation prompts and demonstrations. Each depends on its number and the seed alone."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads the data files. Raises DataError (a ValueError) with file and line of a faulty row."""
        self.tokenizer = tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        self._algorithm = config.algorithm
        self._train_config, self._eval_config = config.data.train, config.data.eval
        self._train = load_prompts(config.data.train, tokenizer)
        self._eval = load_prompts(config.data.eval, tokenizer) if config.data.eval else None
        warm_start = config.algorithm.warm_start
        self._demonstrations: list[Demonstration] = []
        if warm_start is not None:
            self._demonstrations = load_demonstrations(warm_start, config.data.train, tokenizer)

    @property
    def eval_prompts(self) -> int:
        """The number of rows of the evaluation file; 0 if there is none."""
        return len(self._eval) if self._eval else 0

    @property
    def too_long(self) -> int:
        """The number of training rows left out because they are longer than max_prompt_tokens."""
        return self._train.too_long

    def job(self, id: int, evaluation: bool) -> PromptJob:
        """Makes the job of training group `id`, or of row `id` of the evaluation file."""
        if evaluation:
            assert self._eval is not None
            assert self._eval_config is not None
            prompt, samples = self._eval[id], self._eval_config.samples_per_prompt
        else:
            row = row_of(id, len(self._train), self._algorithm.seed, self._train_config.shuffle)
            prompt, samples = self._train[row], self._algorithm.samples_per_prompt
        kind = "eval" if evaluation else "train"
        seeds = [zlib.crc32(f"{self._algorithm.seed}/{kind}/{id}/{i}".encode()) >> 1 for i in range(samples)]
        return PromptJob(id=id, prompt=prompt, samples=samples, evaluation=evaluation, seeds=seeds)

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
    )
    return Group(id=id, samples=[sample])
