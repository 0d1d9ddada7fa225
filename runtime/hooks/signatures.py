"""The type of each hook. docs/hooks.md has the whole contract, with examples.

| hook | key of the recipe | runs in |
|---|---|---|
| `Reward` | rollout.reward | processes beside the rollout worker |
| `GroupReward` | rollout.group_reward | processes beside the rollout worker |
| `Generate` | rollout.generate | the rollout worker's event loop |
| `Agent` | rollout.agent | the rollout worker's event loop |
| `Filter` | rollout.filter | the rollout worker, in a thread or its event loop |
| `SampleFilter` | rollout.sample_filter | the rollout worker, in a thread or its event loop |
| `Curriculum` | data.train.curriculum | the controller, in a thread |
| `Advantage` | algorithm.advantage | the controller, in a thread |
| `LossAverage` | algorithm.loss_average | the controller, in a thread |
| `LogprobFilter` | algorithm.logprob_filter | the controller, in a thread |
| `Loss` | algorithm.loss | the trainer's ranks |
| `Correction` | algorithm.correction | the trainer's ranks |
| `Divergence` | algorithm.kl | the trainer's ranks |
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from verst.runtime.algorithms.averages import AverageCall
    from verst.runtime.algorithms.tokens import TokenBatch, TokenLoss
    from verst.runtime.data.curriculum import CurriculumCall
    from verst.runtime.hooks.answer import Answer
    from verst.runtime.hooks.score import Score
    from verst.runtime.hooks.scored_step import ScoredStep
    from verst.runtime.messages.sample import Group, GroupMeta
    from verst.runtime.rollout.chat_server.agent import AgentCall
    from verst.runtime.rollout.generate import GenerateCall, Response


class Reward(Protocol):
    """Scores one answer: a finite number or bool, or a `Score` with parts."""

    def __call__(self, answer: Answer, /) -> float | Score | Awaitable[float | Score]: ...


class GroupReward(Protocol):
    """Scores all answers to a prompt: a list with a number or a `Score` for each."""

    def __call__(
        self, answers: list[Answer], /
    ) -> Sequence[float | Score] | Awaitable[Sequence[float | Score]]: ...


class Generate(Protocol):
    """Makes one answer, in one turn or several: a Response, or several of one episode, the last of which is scored."""

    async def __call__(self, call: GenerateCall, /) -> Response | Sequence[Response]: ...


class Agent(Protocol):
    """Makes one episode by chat requests to `call.base_url`; returns its score, or None if the reward scores it."""

    async def __call__(self, call: AgentCall, /) -> float | Score | None: ...


class Filter(Protocol):
    """Says whether a finished group is kept: True or False, or (False, "a_reason")."""

    def __call__(self, group: Group, /) -> bool | tuple[bool, str] | Awaitable[bool | tuple[bool, str]]: ...


class SampleFilter(Protocol):
    """Says of each sample of a group "keep" or True, "mask" or False, or "drop" (`rollout/sample_filters.py`)."""

    def __call__(self, group: Group, /) -> Sequence[str | bool] | Awaitable[Sequence[str | bool]]: ...


class Curriculum(Protocol):
    """The weights of a source's n rows for the prompts of the next step: finite, not below 0, not all 0."""

    def __call__(self, call: CurriculumCall, /) -> Sequence[float]: ...


class Advantage(Protocol):
    """The advantages of a step's samples: for each group as many finite numbers as it has rewards, in their order."""

    def __call__(self, groups: Sequence[GroupMeta], /) -> Sequence[Sequence[float]]: ...


class LossAverage(Protocol):
    """The weight of each trained token of each sample of an update, in one list for each group: finite, not below 0.

    Over all trained tokens the weights add up to 1 or less, and to more than 0.
    """

    def __call__(self, call: AverageCall, /) -> Sequence[Sequence[float]]: ...


class LogprobFilter(Protocol):
    """Says of each sample of a scored step whether it is trained on: True or False, or (False, "a_reason")."""

    def __call__(self, step: ScoredStep, /) -> Sequence[bool | tuple[bool, str]]: ...


class Loss(Protocol):
    """The loss of each of a micro-batch's n trained tokens: finite, floating, of shape [n]."""

    def __call__(self, batch: TokenBatch, /) -> TokenLoss: ...


class Correction(Protocol):
    """A factor for the loss of each of n trained tokens: finite, of shape [n], not below 0, without gradient."""

    def __call__(self, batch: TokenBatch, /) -> Tensor: ...


class Divergence(Protocol):
    """An estimate of KL(policy || other) at each of n tokens: finite, of shape [n], with the gradient of logprobs."""

    def __call__(self, logprobs: Tensor, other: Tensor, /) -> Tensor: ...
