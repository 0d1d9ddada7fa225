"""What passes between the controller and the rollout workers besides weights: prompts out, results back."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Prompt(msgspec.Struct, kw_only=True):
    """One row, ready for the engine."""

    ids: list[int]
    text: str  # as rendered
    label: Any
    metadata: dict[str, Any]  # the row's other columns, and what its column `metadata` holds


class PromptJob(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to answer `samples` times."""

    id: int  # group number for training, row number for evaluation
    prompt: Prompt
    samples: int
    evaluation: bool
    seeds: list[int]  # of each sample's random draws


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout worker whose engine serves."""

    engine: int
    incarnation: str  # of its worker's membership: a restarted worker has another


Hold = Literal["all", "weights", "nothing"]  # of GPU memory, in the colocated layout


class HoldReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one process keeps of its memory on the device, and what it took to get there."""

    held: int  # bytes of weights, gradients, optimizer state and copies that are on the device
    offloaded: int  # bytes of these that are kept on the host; gradients are kept nowhere
    allocated: int  # bytes that torch has allocated on the GPU, all in all; 0 on a CPU
    seconds: float


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """The scored answers to one evaluation prompt."""

    id: int
    rewards: list[float]
    response_tokens: int
    example: str  # one prompt's answer, for people


class RolloutStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker measured for one group."""

    response_tokens: int
    seconds: float  # from the first request to the last score
    reward_seconds: float
    cached_tokens: int = 0
