"""Turns a prompt job into a finished group: generates its samples, scores them, and decides whether to keep it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer

from verst.runtime.data.config import DataConfig
from verst.runtime.hooks.dotted import load_function
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.rewards import RewardFunction
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.run.folder import RunFolder


@dataclass(frozen=True)
class Times:
    """When the parts of a group were done."""

    generated: float  # monotonic time of the last sample's last token
    reward_seconds: float  # duration of the slowest reward


@dataclass
class Episodes:
    """The recipe's generate function, reward and filter, and the sampling for training and for evaluation."""

    tokenizer: Any
    generate: Any
    reward: RewardFunction
    keep: Any | None
    sampling: SamplingConfig
    eval_sampling: SamplingConfig

    @staticmethod
    def from_recipe(folder: RunFolder) -> Episodes:
        """Loads the functions that the recipe names. Raises DottedPathError if a path leads nowhere."""
        config = folder.section("rollout", RolloutConfig)
        evaluation = folder.section("data", DataConfig).eval
        greedy = {"temperature": evaluation.temperature if evaluation else 0.0, "top_p": 1.0, "top_k": -1}
        return Episodes(
            tokenizer=AutoTokenizer.from_pretrained(folder.section("model", ModelConfig).path),
            generate=load_function(config.generate, "generate function"),
            reward=RewardFunction(config.reward),
            keep=load_function(config.filter, "group filter") if config.filter else None,
            sampling=config.sampling,
            eval_sampling=config.sampling.model_copy(update=greedy),
        )

    async def group(self, engine: Engine, job: PromptJob) -> tuple[Group, Times]:
        """Generates and scores all samples of a job.

        Raises RewardError if the reward function fails, EngineError if the engine fails.
        """
        results = await asyncio.gather(*(self._sample(engine, job, index) for index in range(job.samples)))
        times = Times(max(t.generated for _, t in results), max(t.reward_seconds for _, t in results))
        return Group(id=job.id, samples=[s for s, _ in results]), times

    async def _sample(self, engine: Engine, job: PromptJob, index: int) -> tuple[Sample, Times]:
        sampling = self.eval_sampling if job.evaluation else self.sampling
        response = await self.generate(engine, job.prompt, sampling, job.seeds[index])
        if response.finish == "abort":
            raise EngineError(f"the engine aborted sample {index} of group {job.id}")
        generated = time.monotonic()
        # Some tokenizers would "clean up" spaces: the reward must see what the model wrote.
        text = self.tokenizer.decode(
            response.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        began = time.monotonic()
        reward = await self.reward.score(
            text, job.prompt.label, job.prompt.metadata, group=job.id, index=index
        )
        metadata = {"prompt": job.prompt.text, "text": text}
        sample = response.sample(job.prompt.ids, group=job.id, index=index, reward=reward, metadata=metadata)
        return sample, Times(generated, time.monotonic() - began)

    def keeps(self, group: Group) -> bool:
        """Whether the recipe's filter keeps the group."""
        return self.keep is None or bool(self.keep(group))
