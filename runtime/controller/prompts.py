"""Makes the prompt jobs for the rollout workers, and the batches of stages with rows of their own (`stage_rows.py`)."""

from __future__ import annotations

import zlib

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.data_record import DataRecord, FileRecord, digest_of, mix_record
from verst.runtime.controller.eval_prompts import EvalPrompts, engine_takes
from verst.runtime.controller.stage_rows import StageRows
from verst.runtime.data.config import EvalConfig, PromptFileConfig, SourceConfig
from verst.runtime.data.prompts import Prompts
from verst.runtime.data.records import size_of
from verst.runtime.data.sources import TrainingPrompts
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.messages.group_ids import prompt_of
from verst.runtime.messages.jobs import PromptJob


class PromptSource:
    """Training prompts and evaluation prompts. Each depends on its number and the seed alone."""

    def __init__(self, config: ControllerConfig) -> None:
        """Reads the data files. Raises DataError (a ValueError) with file and line of a faulty row."""
        self.tokenizer = tokenizer = load_tokenizer(config.model.path)
        self._algorithm = config.algorithm
        self._sections, self._data = config.data.train.sections(), config.data
        self._training: TrainingPrompts | None = None
        if config.algorithm.generates:
            self._training = TrainingPrompts(
                config.data.train,
                config.algorithm.seed,
                tokenizer,
                lambda source: engine_takes(config, source),
            )
        self.held_out = EvalPrompts(config, tokenizer)
        self._max_tokens: int | None = None
        self.stages = StageRows(config.algorithm, tokenizer, config.trainer.max_tokens_per_microbatch)

    @property
    def training(self) -> TrainingPrompts:
        """The training prompts. Raises RuntimeError in a run that generates nothing, which has none."""
        if self._training is None:
            raise RuntimeError("this run generates nothing, so it has no prompts")
        return self._training

    def limit(self, max_tokens: int, multiple: int = 1) -> None:
        """Notes the longest sample, padding included. Raises DataError for a row of a stage that is longer, with each
        sequence padded to a multiple."""
        self._max_tokens = max_tokens
        self.stages.limit(max_tokens, multiple)

    def record(self) -> DataRecord:
        """What the run's record says of the data files (`data_record.py`)."""
        record = self.stages.record()
        if self._training is not None:
            prompts = self.training.prompts.values()
            parts = zip(self._sections.items(), prompts, strict=True)
            record |= {section: _file_record(source, rows) for (section, source), rows in parts}
            if "data.train" not in record:
                weights = {name: source.weight for name, source in self.training.configs.items()}
                record["data.train.sources"] = mix_record(weights)
        for name, rows in self.held_out.rows.items():
            record[self._data.eval_place(name)] = _file_record(self.held_out.configs[name], rows)
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
