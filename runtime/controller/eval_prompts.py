"""Makes the jobs of the held-out prompts, of all evaluation sets."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.data.config import EvalConfig, SourceConfig
from verst.runtime.data.prompts import load_prompts
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.rollout.engine.context import context_length, longest_prompt


class EvalPrompts:
    """The evaluation sets' prompts. A prompt's id is its row, after all rows of the sets before its own."""

    def __init__(self, config: ControllerConfig, tokenizer: Any) -> None:
        """Reads the files. Raises DataError (a ValueError) with file and line of a faulty row."""
        self._seed = config.algorithm.seed
        self._shown = config.metrics.shown_eval
        self.configs = config.data.eval_sets
        self.rows = {
            name: load_prompts(each, tokenizer, engine_takes(config, each))
            for name, each in self.configs.items()
        }

    @property
    def sets(self) -> list[EvalSet]:
        """The sets, in the recipe's order."""
        return [
            EvalSet(name, len(self.rows[name]), each.interval, each.scale)
            for name, each in self.configs.items()
        ]

    @property
    def left_out(self) -> dict[str, int]:
        """By set, the number of its rows that are left out because they are too long."""
        return {name: prompts.too_long for name, prompts in self.rows.items()}

    def place(self, id: int) -> tuple[str, int]:
        """The set of a prompt, and its row there."""
        for name, prompts in self.rows.items():
            if id < len(prompts):
                return name, id
            id -= len(prompts)
        raise AssertionError("no such evaluation prompt")

    def job(self, id: int, version: int | None) -> PromptJob:
        """The job of a prompt for weights of this version. Its seeds depend on its set and row alone."""
        name, row = self.place(id)
        samples = self.configs[name].samples_per_prompt
        seeds = [zlib.crc32(f"{self._seed}/eval/{name}/{row}/{i}".encode()) >> 1 for i in range(samples)]
        return PromptJob(
            id=id,
            prompt=self.rows[name][row],
            samples=samples,
            evaluation=True,
            set=name,
            version=version,
            seeds=seeds,
            shown=row < self._shown,
            row=row,
        )


def engine_takes(config: ControllerConfig, source: SourceConfig | EvalConfig) -> int | None:
    """The most tokens of a prompt of `source` that the engines answer; None if their context is not known."""
    folder = Path(config.rollout.model_path or config.model.path)
    context = context_length(json.loads((folder / "config.json").read_text()), config.rollout.sglang)
    new = source.max_new_tokens or config.rollout.sampling.max_new_tokens
    return None if context is None else longest_prompt(context, new)
