"""How a term's loss is averaged over a step: the weight of each token, a pure function of metadata.

A rank multiplies each token's loss by its weight and adds up; no other normalisation exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from verst.runtime.messages.sample import GroupMeta

Average = Literal["token", "sample", "episode", "constant"]
AVERAGES: tuple[Average, ...] = get_args(Average)


@dataclass(frozen=True)
class AverageCall:
    """What a function of your own at `algorithm.loss_average` may look at: the samples of one update.

    It returns the weight of each trained token of each sample, in one list for each group. Over all trained tokens the
    weights add up to 1 or less.
    """

    groups: tuple[GroupMeta, ...]
    longest: int  # the most tokens that the policy may generate for an answer


def known_average(value: Any) -> Any:
    """Refuses a text that neither names an average nor is a dotted path. Raises ValueError."""
    if isinstance(value, str) and value not in AVERAGES and ":" not in value:
        raise ValueError(
            f"it must be {', '.join(AVERAGES)}, or the dotted path of a function of your own, `module:function`"
        )
    return value


def token_weights(
    trained: Sequence[int],
    average: Average,
    longest: int | None = None,
    episodes: Sequence[Hashable] | None = None,
) -> list[float]:
    """The weight of each trained token of each sample, from the samples' numbers of trained tokens.

    - token: 1 / all trained tokens, the mean over tokens (DAPO, arXiv:2503.14476, eq. 8).
    - sample: 1 / (samples * the sample's tokens), the mean over samples of each sample's mean (GRPO,
      arXiv:2402.03300, eq. 3). Samples without a trained token are left out of it.
    - episode: as sample, but samples of one episode count as one: 1 / (episodes * the episode's tokens).
    - constant: 1 / (samples * longest), the sum over tokens, divided by what it could have been (Dr. GRPO,
      arXiv:2503.20783): no sample's length changes the weight of its tokens. All samples count.

    `longest`: the most tokens that an answer may have; needed for constant. `episodes`: the episode of each sample; by
    default each is one of its own. The weights of all trained tokens sum to one, with constant to at most one. Raises
    ValueError if no sample has a trained token.
    """
    total = sum(trained)
    if total == 0:
        raise ValueError("no sample has a trained token: their loss masks are all zero")
    if average == "token":
        return [1 / total] * len(trained)
    if average == "sample":
        with_tokens = sum(n > 0 for n in trained)
        return [1 / (with_tokens * max(n, 1)) for n in trained]
    if average == "episode":
        names = range(len(trained)) if episodes is None else episodes
        tokens = Counter[Hashable]()
        for name, n in zip(names, trained, strict=True):
            tokens[name] += n
        with_tokens = sum(n > 0 for n in tokens.values())
        return [1 / (with_tokens * max(tokens[name], 1)) for name in names]
    if not longest:
        raise ValueError("the constant average needs the most tokens that an answer may have")
    return [1 / (len(trained) * longest)] * len(trained)
