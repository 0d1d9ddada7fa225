"""Makes the prompt jobs for the rollout workers and the demonstrations of the warm start from the data files."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.data_record import DataRecord, FileRecord, digest_of, mix_record
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.data.config import EvalConfig, PromptFileConfig, SourceConfig
from verst.runtime.data.cursor import row_of
from verst.runtime.data.demonstrations import (
    Demonstration,
    check_demonstration_length,
    load_demonstrations,
)
from verst.runtime.data.prompts import Prompts, load_prompts
from verst.runtime.data.records import size_of
from verst.runtime.data.sources import TrainingPrompts
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.messages.group_ids import prompt_of
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.rollout.engine.context import context_length, longest_prompt


class PromptSource:
    """Training prompts, evaluation prompts and demonstrations. Each depends on its number and the seed alone."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads the data files. Raises DataError (a ValueError) with file and line of a faulty row."""
        self.tokenizer = tokenizer = load_tokenizer(config.model.path)
        self._algorithm = config.algorithm
        self._shown_eval = config.metrics.shown_eval
        self._sections, self._data = config.data.train.sections(), config.data
        self.training = TrainingPrompts(
            config.data.train,
            config.algorithm.seed,
            tokenizer,
            lambda source: _engine_takes(config, source),
        )
        self._evals = {
            name: load_prompts(each, tokenizer, _engine_takes(config, each))
            for name, each in config.data.eval_sets.items()
        }
        self._max_tokens: int | None = None
        warm_start = config.algorithm.warm_start
        self._demonstrations: list[Demonstration] = []
        if warm_start is not None:
            self._demonstrations = load_demonstrations(warm_start, config.data.train, tokenizer)
            for shown in self._demonstrations:
                check_demonstration_length(shown, config.trainer.max_tokens_per_microbatch)

    @property
    def eval_sets(self) -> list[EvalSet]:
        """The evaluation sets, in the recipe's order."""
        sets = self._data.eval_sets
        return [EvalSet(name, len(self._evals[name]), sets[name].interval, sets[name].scale) for name in sets]

    @property
    def eval_left_out(self) -> dict[str, int]:
        """By evaluation set, the number of its rows that are left out because they are too long."""
        return {name: prompts.too_long for name, prompts in self._evals.items()}

    def eval_place(self, id: int) -> tuple[str, int]:
        """The set of an evaluation prompt, and its row there. Ids go on from one set to the next."""
        for name, prompts in self._evals.items():
            if id < len(prompts):
                return name, id
            id -= len(prompts)
        raise AssertionError("no such evaluation prompt")

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
        for name, each in self._data.eval_sets.items():
            record[self._data.eval_place(name)] = _file_record(each, self._evals[name])
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
        row, name, number = None, "", str(id)
        if evaluation:
            name, row = self.eval_place(id)
            number = f"{name}/{row}"  # another set does not change the seeds of this one
            prompt, samples = self._evals[name][row], self._data.eval_sets[name].samples_per_prompt
        else:
            place = self.training.place(prompt_of(id))
            prompt, samples, row = self.training.at(place), self._algorithm.samples_per_prompt, place.row
        kind = "eval" if evaluation else "train"
        seeds = [
            zlib.crc32(f"{self._algorithm.seed}/{kind}/{number}/{i}".encode()) >> 1 for i in range(samples)
        ]
        return PromptJob(
            id=id,
            prompt=prompt,
            samples=samples,
            evaluation=evaluation,
            set=name,
            version=version,
            seeds=seeds,
            max_tokens=None if evaluation else self._max_tokens,
            shown=evaluation and row is not None and row < self._shown_eval,
            row=row,
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


def _engine_takes(config: ControllerConfig, source: SourceConfig | EvalConfig) -> int | None:
    """The most tokens of a prompt of `source` that the engines answer; None if their context is not known."""
    folder = Path(config.rollout.model_path or config.model.path)
    context = context_length(json.loads((folder / "config.json").read_text()), config.rollout.sglang)
    new = source.max_new_tokens or config.rollout.sampling.max_new_tokens
    return None if context is None else longest_prompt(context, new)


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
