"""Makes the prompt jobs for the rollout workers and the demonstrations of the warm start from the data files."""

from __future__ import annotations

import zlib

import numpy as np

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.data_record import DataRecord, FileRecord, digest_of, mix_record
from verst.runtime.controller.eval_prompts import EvalPrompts, engine_takes
from verst.runtime.data.config import EvalConfig, PromptFileConfig, SourceConfig
from verst.runtime.data.cursor import row_of
from verst.runtime.data.demonstrations import (
    Demonstration,
    check_demonstration_length,
    load_demonstrations,
)
from verst.runtime.data.prompts import Prompts
from verst.runtime.data.records import size_of
from verst.runtime.data.sources import TrainingPrompts
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.messages.group_ids import prompt_of
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.sample import Group, Sample


class PromptSource:
    """Training prompts, evaluation prompts and demonstrations. Each depends on its number and the seed alone."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads the data files. Raises DataError (a ValueError) with file and line of a faulty row."""
        self.tokenizer = tokenizer = load_tokenizer(config.model.path)
        self._algorithm = config.algorithm
        self._sections, self._data = config.data.train.sections(), config.data
        self.training = TrainingPrompts(
            config.data.train,
            config.algorithm.seed,
            tokenizer,
            lambda source: engine_takes(config, source),
        )
        self.held_out = EvalPrompts(config, tokenizer)
        self._max_tokens: int | None = None
        warm_start = config.algorithm.warm_start
        self._demonstrations: list[Demonstration] = []
        if warm_start is not None:
            self._demonstrations = load_demonstrations(warm_start, config.data.train, tokenizer)
            for shown in self._demonstrations:
                check_demonstration_length(shown, config.trainer.max_tokens_per_microbatch)

    def limit(self, max_tokens: int) -> None:
        """Notes the longest sample, padding included. Raises DataError for a demonstration that is longer."""
        self._max_tokens = max_tokens
        for shown in self._demonstrations:
            check_demonstration_length(shown, max_tokens)

    def record(self) -> DataRecord:
        """What the run's record says of the data files (`data_record.py`)."""
        prompts = self.training.prompts.values()
        parts = zip(self._sections.items(), prompts, strict=True)
        record = {section: _file_record(source, rows) for (section, source), rows in parts}
        if "data.train" not in record:
            weights = {name: source.weight for name, source in self.training.configs.items()}
            record["data.train.sources"] = mix_record(weights)
        for name, rows in self.held_out.rows.items():
            record[self._data.eval_place(name)] = _file_record(self.held_out.configs[name], rows)
        warm_start = self._algorithm.warm_start
        if warm_start is not None:
            shown = self._demonstrations
            record["algorithm.warm_start"] = FileRecord(
                path=warm_start.path,
                bytes=size_of(warm_start.path),
                rows=len(shown),
                digest=digest_of((d.prompt_ids.tolist(), d.response_ids.tolist()) for d in shown),
            )
        return record

    def job(self, id: int, evaluation: bool, version: int | None = None) -> PromptJob:
        """Makes the job of training group `id`, or of evaluation prompt `id` for weights of this version.

        Groups of the same prompt have different seeds, because the seed depends on the group's number.
        """
        if evaluation:
            return self.held_out.job(id, version)
        place = self.training.place(prompt_of(id))
        samples = self._algorithm.samples_per_prompt
        seeds = [zlib.crc32(f"{self._algorithm.seed}/train/{id}/{i}".encode()) >> 1 for i in range(samples)]
        return PromptJob(
            id=id,
            prompt=self.training.at(place),
            samples=samples,
            evaluation=False,
            version=version,
            seeds=seeds,
            max_tokens=self._max_tokens,
            row=place.row,
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


def _file_record(config: PromptFileConfig, prompts: Prompts) -> FileRecord:
    # Keys of sources or sets alone, the path and the order do not decide which rows there are.
    own = (
        EvalConfig.model_fields.keys() | SourceConfig.model_fields.keys()
    ) - PromptFileConfig.model_fields.keys()
    how = {"path", *own}
    return FileRecord(
        path=config.path,
        bytes=size_of(config.path),
        rows=len(prompts),
        too_long=prompts.too_long,
        digest=digest_of((prompt.ids, prompt.label, prompt.metadata) for prompt in prompts.rows),
        settings={key: value for key, value in config.model_dump(mode="json").items() if key not in how},
    )


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
