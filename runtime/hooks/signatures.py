"""The type of each hook. docs/hooks.md has the whole contract, with examples.

| hook | key of the recipe | runs in |
|---|---|---|
| `Reward` | rollout.reward | processes beside the rollout worker |
| `Generate` | rollout.generate | the rollout worker's event loop |
| `Filter` | rollout.filter | the rollout worker, in a thread or its event loop |
| `Advantage` | algorithm.advantage | the controller, in a thread |
| `Loss` | algorithm.loss | the trainer's ranks |
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from verst.runtime.algorithms.losses import PolicyBatch, PolicyLoss
    from verst.runtime.messages.jobs import Prompt
    from verst.runtime.messages.sample import Group
    from verst.runtime.rollout.config import SamplingConfig
    from verst.runtime.rollout.engine.engine import Engine
    from verst.runtime.rollout.generate import Response


class Reward(Protocol):
    """Scores one answer: a finite number or bool."""

    def __call__(
        self, response: str, label: Any, metadata: dict[str, Any], /
    ) -> float | Awaitable[float]: ...


class Generate(Protocol):
    """Makes one answer, in one turn or several."""

    async def __call__(
        self, engine: Engine, prompt: Prompt, sampling: SamplingConfig, seed: int | None, /
    ) -> Response: ...


class Filter(Protocol):
    """Says whether a finished group is kept: True or False."""

    def __call__(self, group: Group, /) -> bool | Awaitable[bool]: ...


class Advantage(Protocol):
    """The advantages of one group's answers, as many finite numbers as there are rewards, in their order."""

    def __call__(self, rewards: list[float], /) -> Sequence[float]: ...


class Loss(Protocol):
    """The loss of each of a micro-batch's n trained tokens: finite, floating, of shape [n]."""

    def __call__(self, batch: PolicyBatch, /) -> PolicyLoss: ...
