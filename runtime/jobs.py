"""What passes between the controller and the rollout workers besides weights: prompts out, results back."""

from __future__ import annotations

import msgspec

from verst.runtime.data.prompts import Prompt


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
