"""What a filter of a step's samples sees: `algorithm.logprob_filter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScoredSample:
    """One sample of a step, after the trainer has computed its log-probabilities and before it trains on it.

    Log-probabilities and entropy are sums over the sample's trained tokens, in nats, at the temperature of the
    sampling.
    """

    group: int  # the number of its prompt group
    index: int  # its place in the group
    episode: int  # samples of one group with the same number are of one episode
    source: str  # the name of the prompt's source, if there are several; else ""
    reward: float  # without what `algorithm.kl_in: reward` takes from it
    scores: Mapping[str, float]  # the parts of the reward
    advantage: float  # with a critic the reward, of which the trainer makes an advantage for each token
    finish: str  # "stop" or "length"
    length: int  # prompt and response tokens
    trained_tokens: int  # at least 1
    staleness: int  # weight versions between the group's oldest token and the weights in training
    logprobs: float  # of the trainer's weights before the step
    rollout_logprobs: float  # as the engine reported them
    difference: float  # of these two, each token's without its sign
    entropy: float  # of the trainer's distributions
    reference_logprobs: float | None  # None: the recipe has no reference
    teacher_logprobs: float | None  # None: the recipe has no teacher


@dataclass(frozen=True, kw_only=True)
class ScoredStep:
    """All samples of a step that have a trained token and were scored."""

    step: int
    samples: Sequence[ScoredSample]
