"""Turns a prompt job into a finished group: generates its samples, scores them, and decides whether to keep it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import msgspec

from verst.runtime.algorithms.config import Taught
from verst.runtime.data.chat import with_answer
from verst.runtime.data.config import DataConfig, SourceConfig
from verst.runtime.data.tokenizer import load_tokenizer
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.score import Score
from verst.runtime.hooks.values import Decision, keep_or_drop
from verst.runtime.messages.jobs import PromptJob
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Group, Sample
from verst.runtime.rewards.group import GroupReward
from verst.runtime.rewards.score import RewardFunction
from verst.runtime.rollout.chat_server.agent import agent_hook
from verst.runtime.rollout.chat_server.server import ChatServer
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine import context
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.generate import GenerateCall, Response
from verst.runtime.rollout.sample_check import (
    are_responses,
    checked_sample,
    description_of,
    own_score,
    unsendable,
    vocabulary_size,
)
from verst.runtime.rollout.sample_filters import Fate, fates_of, sifted
from verst.runtime.rollout.set_hooks import (
    SetHooks,
    final_answer,
    generate_hook,
    group_reward_of,
    hooks_of_sets,
    rewards_of,
)
from verst.runtime.run.folder import RunFolder

_FILTER_S = 60.0


@dataclass(frozen=True)
class Times:
    """When the parts of a group were done."""

    generated: float  # monotonic time of the last sample's last token
    reward_seconds: float  # duration of the slowest reward


@dataclass(frozen=True)
class _Episode:
    """The samples of one episode, which have its score in common."""

    samples: list[Sample]
    answer: Answer
    score: Score | None  # None: the group reward comes still

    def scored(self) -> list[Sample]:
        assert self.score is not None
        found = {"reward": self.score.value, "scores": self.score.parts}
        return [msgspec.structs.replace(sample, **found) for sample in self.samples]


@dataclass
class Episodes:
    """What answers are made and scored with in training and for each evaluation set, and the recipe's filter."""

    tokenizer: Any
    generate: Hook
    reward: RewardFunction | None  # None: the generate function scores itself, or the group reward does
    keep: Hook | None
    sampling: SamplingConfig
    sets: dict[str, SetHooks]  # by evaluation set
    concurrency: int  # most samples that are generated at a time
    generate_failure: Literal["fail", "retry"] = "fail"
    vocabulary: int | None = None  # the number of token ids of the model; None: not known
    context: int | None = None  # the engine's, in tokens; None: not known
    sift: Hook | None = None
    # By name, the sources of training prompts that have a reward or a sampling of their own.
    rewards: dict[str, RewardFunction] = field(default_factory=dict)
    samplings: dict[str, SamplingConfig] = field(default_factory=dict)
    server: ChatServer | None = None  # of the agents' requests
    group_reward: GroupReward | None = None
    taught: bool = False  # by a teacher: in training an answer without a score has the reward 0

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.concurrency)

    @staticmethod
    def from_recipe(folder: RunFolder) -> Episodes:
        """Loads the functions that the recipe names. Raises HookError if one cannot be loaded."""
        config = folder.section("rollout", RolloutConfig)
        data = folder.section("data", DataConfig)
        sources = data.train.by_name()
        reward_of = rewards_of(config)
        reward = None if config.reward is None else reward_of(config.reward)
        model = folder.section("model", ModelConfig).path
        tokenizer = load_tokenizer(model)
        server = ChatServer() if config.agent is not None else None
        generate = (
            generate_hook(config, config.generate)
            if server is None
            else agent_hook(config, data, tokenizer, server)
        )
        training = SetHooks(config.sampling, generate, reward, group_reward=group_reward_of(config))
        return Episodes(
            tokenizer=tokenizer,
            generate=training.generate,
            reward=training.reward,
            group_reward=training.group_reward,
            taught=folder.section("algorithm", Taught).teacher is not None,
            server=server,
            rewards={name: reward_of(s.reward) for name, s in sources.items() if s.reward is not None},
            samplings={name: own_sampling(config.sampling, source) for name, source in sources.items()},
            keep=Hook("group filter", config.filter, timeout_s=_FILTER_S) if config.filter else None,
            sift=Hook("sample filter", config.sample_filter, timeout_s=_FILTER_S)
            if config.sample_filter
            else None,
            sampling=config.sampling,
            sets=hooks_of_sets(config, data.eval_sets, training, reward_of),
            concurrency=config.concurrency,
            generate_failure=config.generate_failure,
            vocabulary=vocabulary_size(description_of(model)),
            context=context.context_length(description_of(config.model_path or model), config.sglang),
        )

    async def __aenter__(self) -> Self:
        """Starts the rewards' processes. Raises HookError if a reward cannot be loaded."""
        async with AsyncExitStack() as started:
            if self.server is not None:
                await started.enter_async_context(self.server)
            for reward in self._all_rewards():
                await started.enter_async_context(reward)
            if self.group_reward is not None:
                await started.enter_async_context(self.group_reward)
            self._started = started.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._started.aclose()

    def take_failures(self) -> int:
        """How many calls of rewards for training have failed and were scored nevertheless, since the last call."""
        of_groups = self.group_reward.take_failures() if self.group_reward is not None else 0
        return of_groups + sum(reward.take_failures() for reward in self._all_rewards())

    def _all_rewards(self) -> list[RewardFunction]:
        found = [self.reward, *self.rewards.values(), *(hooks.reward for hooks in self.sets.values())]
        return list(dict.fromkeys(reward for reward in found if reward is not None))

    def hooks(self, job: PromptJob) -> SetHooks:
        """What the answers of a job are made and scored with."""
        if job.evaluation:
            return self.sets[job.set]
        source = job.prompt.source
        return SetHooks(
            self.samplings.get(source, self.sampling),
            self.generate,
            self.rewards.get(source, self.reward),
            group_reward=self.group_reward,
        )

    async def votes(self, job: PromptJob, texts: list[str]) -> list[str | None]:
        """The final answer in each of an evaluation prompt's answers; empty if its set extracts none."""
        extract = self.hooks(job).extract
        if extract is None:
            return []
        return [
            await extract(f"answer {index} to {place_of(job)}", text, check=final_answer)
            for index, text in enumerate(texts)
        ]

    async def group(self, engine: Engine, job: PromptJob) -> tuple[Group, Times]:
        """Generates and scores all episodes of a job. Samples of one episode have its number in common.

        Raises HookError if a function of the user fails, EngineError if the engine fails, and RewardFailedError if a
        reward fails and the recipe then drops the group.
        """
        tasks = [asyncio.ensure_future(self._episode(engine, job, index)) for index in range(job.samples)]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:  # the group has failed: its other samples are of no use
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        began = time.monotonic()
        episodes = await self._scored_together(job, [episode for episode, _ in results])
        together = time.monotonic() - began
        times = Times(
            max(t.generated for _, t in results), max(t.reward_seconds for _, t in results) + together
        )
        made = [sample for episode in episodes for sample in episode.scored()]
        samples = [msgspec.structs.replace(sample, index=index) for index, sample in enumerate(made)]
        return Group(id=job.id, samples=samples, source=job.prompt.source, row=job.row), times

    async def _episode(self, engine: Engine, job: PromptJob, index: int) -> tuple[_Episode, Times]:
        place = f"sample {index} of {place_of(job)}"
        responses = await self._responses(place, engine, job, index)
        generated = time.monotonic()
        samples = [
            self._unscored(
                place if len(responses) == 1 else f"response {n} of {place}", engine, job, index, response
            )
            for n, response in enumerate(responses)
        ]
        began = time.monotonic()
        answer = answer_of(job, responses, samples[-1])
        score = await self._score(place, job, responses, answer)
        return _Episode(samples, answer, score), Times(generated, time.monotonic() - began)

    async def _scored_together(self, job: PromptJob, episodes: list[_Episode]) -> list[_Episode]:
        """The episodes with the scores of the group reward, if there is one."""
        reward = self.hooks(job).group_reward
        if reward is None:
            return episodes
        answers = [msgspec.structs.replace(e.answer, score=e.score) for e in episodes]
        scores = await reward.score(answers, place=place_of(job))
        return [replace(episode, score=score) for episode, score in zip(episodes, scores, strict=True)]

    async def _responses(self, place: str, engine: Engine, job: PromptJob, index: int) -> list[Response]:
        try:
            async with self._free:
                responses = await self.hooks(job).generate(
                    place, self.call(engine, job, index), check=are_responses
                )
        except HookError as error:
            if self.generate_failure == "retry":
                raise EngineError(str(error)) from error  # those are tried again
            raise
        if any(response.finish == "abort" for response in responses):
            raise EngineError(f"the engine aborted {place}")
        return responses

    def _unscored(self, place: str, engine: Engine, job: PromptJob, index: int, response: Response) -> Sample:
        unscored = {
            "prompt_ids": job.prompt.ids,
            "group": job.id,
            "index": index,
            "metadata": {},
            "trained": not job.evaluation,
        }
        sample = checked_sample(
            self.hooks(job).generate,
            place,
            response,
            unscored,
            vocabulary=self.vocabulary,
            newest=engine.version,
        )
        own = response.prompt_ids
        prompt = job.prompt.text if own is None else self._decoded(own, skip_special_tokens=False)
        metadata = {"prompt": prompt, "text": self._decoded(response.ids)} | response.metadata
        return msgspec.structs.replace(sample, episode=index, metadata=metadata)

    def _decoded(self, ids: Any, skip_special_tokens: bool = True) -> str:
        # Some tokenizers would "clean up" spaces: the reward must see what the model wrote.
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    async def _score(
        self, place: str, job: PromptJob, responses: list[Response], answer: Answer
    ) -> Score | None:
        """The episode's own score, or the reward of its last response; None if the group reward alone scores it."""
        for response in responses:
            if (own := own_score(response)) is not None:
                return own
        hooks = self.hooks(job)
        if hooks.reward is not None:
            return await hooks.reward.score(answer, place=place)
        if hooks.group_reward is None:
            if self.taught and not job.evaluation:
                return Score(0.0)
            raise hooks.generate.fault(
                place, "returned no score, and the recipe has no rollout.reward: set `Response.score`"
            )
        return None

    def call(self, engine: Engine, job: PromptJob, index: int) -> GenerateCall:
        """What the generate function gets for one answer."""
        of_engine = None if self.context is None else context.longest_sample(self.context)
        limits = [limit for limit in (job.max_tokens, of_engine) if limit is not None]
        return GenerateCall(
            engine=engine,
            prompt=job.prompt,
            sampling=self.hooks(job).sampling,
            seed=job.seeds[index],
            tokenizer=self.tokenizer,
            evaluation=job.evaluation,
            group=job.id,
            index=index,
            set=job.set,
            longest_sample=min(limits, default=None),
            longest_input=None if self.context is None else context.longest_prompt(self.context, 0),
        )

    async def keeps(self, group: Group) -> Decision:
        """Whether the recipe's filter keeps the group, and why not.

        Raises HookError if the filter fails, or writes into the samples what cannot be trained on.
        """
        if self.keep is None:
            return Decision(True)
        return await self._filtered(self.keep, group, keep_or_drop)

    async def sifted(self, group: Group) -> tuple[Group | None, Counter[Fate]]:
        """The group without what the recipe's sample filter drops and masks, None if nothing is left; and the counts.

        Raises HookError if the filter fails, or writes into the samples what cannot be trained on.
        """
        if self.sift is None:
            return group, Counter()
        return sifted(group, await self._filtered(self.sift, group, fates_of(group)))

    async def _filtered[T](self, hook: Hook, group: Group, check: Callable[[Any], T]) -> T:
        place = f"group {group.id}"
        newest = max(int(sample.weight_versions.max()) for sample in group.samples)
        value = await hook(place, group, check=check)
        if problem := unsendable(group, vocabulary=self.vocabulary, newest=newest):
            raise hook.fault(place, f"left in the group what cannot be trained on: {problem}")
        return value


def own_sampling(usual: SamplingConfig, source: SourceConfig) -> SamplingConfig:
    """The sampling of a source: `rollout.sampling` with what the source says otherwise."""
    own = {"temperature": source.temperature, "max_new_tokens": source.max_new_tokens}
    return usual.model_copy(update={key: value for key, value in own.items() if value is not None})


def place_of(job: PromptJob) -> str:
    """Which prompt a job has, for messages."""
    return f"evaluation prompt {job.id} ({job.set})" if job.evaluation else f"group {job.id}"


def answer_of(job: PromptJob, responses: list[Response], sample: Sample) -> Answer:
    """What the reward gets of an episode: its last response, of which `sample` was made, and all its turns."""
    last, text = responses[-1], sample.metadata["text"]
    messages = last.messages
    if not messages and last.turns == 1 and last.prompt_ids is None and job.prompt.messages:
        messages = with_answer(job.prompt.messages, text)
    return Answer(
        text=text,
        label=job.prompt.label,
        metadata=job.prompt.metadata,
        prompt=sample.metadata["prompt"],
        ids=last.ids.tolist(),
        finish="length" if last.finish == "length" else "stop",
        turns=sum(response.turns for response in responses),
        messages=messages,
        evaluation=job.evaluation,
        source=job.prompt.source,
    )
