"""Turns a prompt job into a finished group: generates its samples, scores them, and decides whether to keep it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import msgspec

from verst.runtime.data.chat import with_answer
from verst.runtime.data.config import DataConfig, SourceConfig
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import Decision, keep_or_drop
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.rewards import RewardFunction
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine import context
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.generate import GenerateCall, Response
from verst.runtime.rollout.sample_check import (
    checked_sample,
    description_of,
    is_response,
    unsendable,
    vocabulary_size,
)
from verst.runtime.rollout.sample_filters import Fate, fates_of, sifted
from verst.runtime.run.folder import RunFolder

_FILTER_S = 60.0


@dataclass(frozen=True)
class Times:
    """When the parts of a group were done."""

    generated: float  # monotonic time of the last sample's last token
    reward_seconds: float  # duration of the slowest reward


@dataclass
class Episodes:
    """The recipe's generate function, reward and filter, and the sampling for training and for evaluation."""

    tokenizer: Any
    generate: Hook
    reward: RewardFunction
    keep: Hook | None
    sampling: SamplingConfig
    eval_sampling: SamplingConfig
    concurrency: int  # most samples that are generated at a time
    generate_failure: Literal["fail", "retry"] = "fail"
    vocabulary: int | None = None  # the number of token ids of the model; None: not known
    context: int | None = None  # the engine's, in tokens; None: not known
    sift: Hook | None = None
    # By name, the sources of training prompts that have a reward or a sampling of their own.
    rewards: dict[str, RewardFunction] = field(default_factory=dict)
    samplings: dict[str, SamplingConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.concurrency)

    @staticmethod
    def from_recipe(folder: RunFolder) -> Episodes:
        """Loads the functions that the recipe names. Raises HookError if one cannot be loaded."""
        config = folder.section("rollout", RolloutConfig)
        data = folder.section("data", DataConfig)
        evaluation, sources = data.eval, data.train.by_name()
        names = ("temperature", "top_p", "top_k", "min_p")
        own = {name: getattr(evaluation, name) for name in names} if evaluation else {}
        model = folder.section("model", ModelConfig).path
        return Episodes(
            tokenizer=load_tokenizer(model),
            generate=Hook(
                "generate function",
                config.generate,
                timeout_s=config.generate_timeout_s,
                in_thread=False,
                passes=EngineError,
            ),
            reward=_reward(config, config.reward),
            rewards={name: _reward(config, s.reward) for name, s in sources.items() if s.reward is not None},
            samplings={name: own_sampling(config.sampling, source) for name, source in sources.items()},
            keep=Hook("group filter", config.filter, timeout_s=_FILTER_S) if config.filter else None,
            sift=Hook("sample filter", config.sample_filter, timeout_s=_FILTER_S)
            if config.sample_filter
            else None,
            sampling=config.sampling,
            eval_sampling=config.sampling.model_copy(update=own),
            concurrency=config.concurrency,
            generate_failure=config.generate_failure,
            vocabulary=vocabulary_size(description_of(model)),
            context=context.context_length(description_of(config.model_path or model), config.sglang),
        )

    async def __aenter__(self) -> Self:
        """Starts the rewards' processes. Raises HookError if a reward cannot be loaded."""
        async with AsyncExitStack() as started:
            for reward in (self.reward, *self.rewards.values()):
                await started.enter_async_context(reward)
            self._started = started.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._started.aclose()

    def take_failures(self) -> int:
        """How many calls of rewards for training have failed and were scored nevertheless, since the last call."""
        return sum(reward.take_failures() for reward in (self.reward, *self.rewards.values()))

    async def group(self, engine: Engine, job: PromptJob) -> tuple[Group, Times]:
        """Generates and scores all samples of a job.

        Raises HookError if a function of the user fails, EngineError if the engine fails, and RewardFailedError if a
        reward fails and the recipe then drops the group.
        """
        tasks = [asyncio.ensure_future(self._sample(engine, job, index)) for index in range(job.samples)]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:  # the group has failed: its other samples are of no use
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        times = Times(max(t.generated for _, t in results), max(t.reward_seconds for _, t in results))
        samples = [sample for sample, _ in results]
        return Group(id=job.id, samples=samples, source=job.prompt.source, row=job.row), times

    async def _sample(self, engine: Engine, job: PromptJob, index: int) -> tuple[Sample, Times]:
        reward = self.reward if job.evaluation else self.rewards.get(job.prompt.source, self.reward)
        place = f"sample {index} of {'evaluation prompt' if job.evaluation else 'group'} {job.id}"
        try:
            async with self._free:
                response = await self.generate(place, self.call(engine, job, index), check=is_response)
        except HookError as error:
            if self.generate_failure == "retry":
                raise EngineError(str(error)) from error  # those are tried again
            raise
        if response.finish == "abort":
            raise EngineError(f"the engine aborted {place}")
        generated = time.monotonic()
        unscored = {
            "prompt_ids": job.prompt.ids,
            "group": job.id,
            "index": index,
            "metadata": {},
            "trained": not job.evaluation,
        }
        sample = checked_sample(
            self.generate, place, response, unscored, vocabulary=self.vocabulary, newest=engine.version
        )
        # Some tokenizers would "clean up" spaces: the reward must see what the model wrote.
        text = self.tokenizer.decode(
            response.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        metadata = {"prompt": job.prompt.text, "text": text} | response.metadata
        began = time.monotonic()
        score = await reward.score(answer_of(job, response, text), place=place)
        sample = msgspec.structs.replace(sample, reward=score.value, scores=score.parts, metadata=metadata)
        return sample, Times(generated, time.monotonic() - began)

    def call(self, engine: Engine, job: PromptJob, index: int) -> GenerateCall:
        """What the generate function gets for one answer."""
        of_engine = None if self.context is None else context.longest_sample(self.context)
        own = self.samplings.get(job.prompt.source, self.sampling)
        limits = [limit for limit in (job.max_tokens, of_engine) if limit is not None]
        return GenerateCall(
            engine=engine,
            prompt=job.prompt,
            sampling=self.eval_sampling if job.evaluation else own,
            seed=job.seeds[index],
            tokenizer=self.tokenizer,
            evaluation=job.evaluation,
            group=job.id,
            index=index,
            longest_sample=min(limits, default=None),
            longest_input=None if self.context is None else context.longest_prompt(self.context, 0),
        )

    async def keeps(self, group: Group) -> Decision:
        """Whether the recipe's filter keeps the group, and why not.

        Raises HookError if the filter fails, or writes into the samples what cannot be sent.
        """
        if self.keep is None:
            return Decision(True)
        place = f"group {group.id}"
        decision = await self.keep(place, group, check=keep_or_drop)
        if problem := unsendable(group):
            raise self.keep.fault(place, f"left in the group what cannot be sent: {problem}")
        return decision

    async def sifted(self, group: Group) -> tuple[Group | None, Counter[Fate]]:
        """The group without what the recipe's sample filter drops and masks, None if nothing is left; and the counts.

        Raises HookError if the filter fails.
        """
        if self.sift is None:
            return group, Counter()
        return sifted(group, await self.sift(f"group {group.id}", group, check=fates_of(group)))


def own_sampling(usual: SamplingConfig, source: SourceConfig) -> SamplingConfig:
    """The sampling of a source: `rollout.sampling` with what the source says otherwise."""
    own = {"temperature": source.temperature, "max_new_tokens": source.max_new_tokens}
    return usual.model_copy(update={key: value for key, value in own.items() if value is not None})


def _reward(config: RolloutConfig, path: str) -> RewardFunction:
    return RewardFunction(
        path,
        config.reward_timeout_s,
        processes=config.reward_processes,
        memory_gib=config.reward_memory_gib,
        failure=config.reward_failure,
        retries=config.reward_retries,
    )


def answer_of(job: PromptJob, response: Response, text: str) -> Answer:
    """What the reward gets. `text` is the decoded response."""
    messages = response.messages
    if not messages and response.turns == 1 and job.prompt.messages:
        messages = with_answer(job.prompt.messages, text)
    return Answer(
        text=text,
        label=job.prompt.label,
        metadata=job.prompt.metadata,
        prompt=job.prompt.text,
        ids=response.ids.tolist(),
        finish="length" if response.finish == "length" else "stop",
        turns=response.turns,
        messages=messages,
        evaluation=job.evaluation,
        source=job.prompt.source,
    )
