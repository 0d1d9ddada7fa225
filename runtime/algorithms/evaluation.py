"""The figures of an evaluation set, pure functions of the rewards of its answers, and when to stop early.

Every figure that has an interval is a mean over prompts of one value per prompt: the answers to a prompt are alike, so
prompts are the clusters. With the values x_1 … x_m of m prompts, the half width of the 95 % interval is

    1.96 * sqrt(sum_i (x_i - mean)² / (m (m - 1)))

the normal interval of a mean with the sample variance (clustered standard errors: arXiv 2411.00640, section 2.2). It
is about the prompts as a sample of all prompts like them. A single prompt has none, and neither have prompts that all
have the same value: nothing shows how far others differ, and the formula's 0 would say that none does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from verst.runtime.messages.jobs import EvalAnswers

_Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """Which figures a set has. `samples` answers are given to each prompt."""

    samples: int = 1
    k: tuple[int, ...] = ()  # of pass@k
    threshold: float = 1.0  # an answer with this reward or more is right
    votes: bool = False  # whether answers have votes, for maj@n

    def names(self) -> tuple[str, ...]:
        """The figures with an interval, of which more is better."""
        several = self.samples > 1
        return (
            "reward",
            *(f"pass@{k}" for k in self.k),
            *((f"best@{self.samples}",) if several else ()),
            *((f"maj@{self.samples}",) if several and self.votes else ()),
        )


def pass_at_k(rewards: Sequence[float], k: int, threshold: float) -> float:
    """The chance that one of k answers is right: 1 - C(n-c, k) / C(n, k) with c of n answers right.

    It is the unbiased estimate from n ≥ k answers (arXiv 2107.03374, equation 1).
    """
    n, c = len(rewards), sum(reward >= threshold for reward in rewards)
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def majority(rewards: Sequence[float], votes: Sequence[str | None]) -> float:
    """The mean reward of the answers that give the most frequent final answer; the mean over several that tie.

    Answers without a final answer have no vote. If none has one, the value is 0.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    winners = [vote for vote, count in counts.items() if count == most]
    if not winners:
        return 0.0
    return sum(_mean([r for r, v in zip(rewards, votes, strict=True) if v == w]) for w in winners) / len(
        winners
    )


def figures(prompts: Sequence[EvalAnswers], scale: Scale) -> dict[str, float]:
    """All figures of a set: those of `Scale.names`, each with its half width `NAME_ci` if it has one, and lengths.

    `response_length`: mean tokens of an answer; `truncated`: share of answers that were cut off.
    """
    per_prompt: dict[str, Callable[[EvalAnswers], float]] = {"reward": lambda a: _mean(a.rewards)}
    for k in scale.k:
        per_prompt[f"pass@{k}"] = lambda a, k=k: pass_at_k(a.rewards, k, scale.threshold)  # type: ignore[misc]
    per_prompt[f"best@{scale.samples}"] = lambda a: max(a.rewards)
    per_prompt[f"maj@{scale.samples}"] = lambda a: majority(a.rewards, a.votes)
    found: dict[str, float] = {}
    for name in scale.names():
        values = [per_prompt[name](answers) for answers in prompts]
        found[name] = _mean(values)
        if (half := half_width(values)) is not None:
            found[f"{name}_ci"] = half
    found["response_length"] = _mean([n for answers in prompts for n in answers.tokens])
    found["truncated"] = _mean([t for answers in prompts for t in answers.truncated])
    return found


def half_width(values: Sequence[float]) -> float | None:
    """The half width of the 95 % interval of the mean of one value per prompt; None if all values are the same."""
    m = len(values)
    if min(values) == max(values):
        return None
    mean = _mean(values)
    return _Z * math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (m * (m - 1)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
