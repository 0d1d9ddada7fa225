"""Assigns each sample of a step to a data-parallel rank and a micro-batch: a pure function of group metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from verst.runtime.algorithms.averages import Average, token_weights
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import MicroBatch, SampleRef, StepPlan, TermName

_FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Part:
    """The groups that take part in one term of a step's objective, and how the term is averaged over them."""

    term: TermName
    groups: Sequence[GroupMeta]
    advantages: Sequence[Sequence[float]]  # [group][sample], in the order of `groups`
    # pair: every token counts 1 / groups, and the term itself spreads the loss of a pair over its tokens
    average: Average | Literal["pair"]
    longest: int | None = None  # the most tokens of an answer, for the constant average
    coefficient: float = 1.0  # of the term in the objective
    takes_part: Sequence[Sequence[bool]] | None = None  # [group][sample]; None: all samples do
    factors: Sequence[float] | None = None  # of the loss of each group, beside its weight; None: 1
    # [group][sample], of each trained token, in place of those of `average`; None: those
    own_weights: Sequence[Sequence[float]] | None = None


def plan_step(
    *,
    step: int,
    parts: Sequence[Part],
    dp_size: int,
    max_tokens: int,
    pad_multiple: int,
    count_multiple: int = 1,
    skip_zero_advantage: bool = False,
) -> StepPlan:
    """Plans one step.

    First spreads the units over the data-parallel ranks so that the slowest rank has as little work as
    possible (longest processing time first, by `_cost`). Then packs each rank's units into as few micro-batches of
    at most `max_tokens` tokens as it finds, each with about the same work. A unit is a sample, or the two samples of a
    pair, which stay together and stand one after the other, the first sample of the group first. Every rank gets the
    same number of micro-batches, a multiple of `count_multiple` (interleaved pipelines need a multiple of the
    pipeline's size).

    A micro-batch is one row of sequences, so its samples' own lengths count, each rounded up to `pad_multiple`.

    Args:
        parts: one for each term of the objective. A group may be in several, with the same advantages.
        skip_zero_advantage: leave out samples with an advantage of zero, which have no policy gradient, if they take
            part in no other term, but keep at least one sample. Samples that are left out still count in the mean.
        pad_multiple: lengths are padded to multiples of it (tensor and context parallelism divide sequences).

    Raises ValueError when a single unit is longer than `max_tokens`, when no sample has a trained token, for a group
    that is no pair where one is needed, and for an advantage that is missing or not finite in float32, the trainer's
    format.
    """
    refs = weighted(parts)
    if skip_zero_advantage:
        refs = [ref for ref in refs if _has_gradient(ref, parts)] or refs[:1]
    units = _units(refs, parts, pad_multiple)
    for unit in units:
        if unit.width > max_tokens:
            first = unit.refs[0]
            what = f"sample {first.index}" if len(unit.refs) == 1 else "the pair"
            raise ValueError(
                f"{what} of group {first.group} has {unit.length} tokens; "
                f"trainer.max_tokens_per_microbatch is {max_tokens}"
            )
    shares = _spread(units, dp_size)
    count = max(_fewest(share, max_tokens) for share in shares)
    count += -count % count_multiple
    return StepPlan(
        step=step,
        terms=[part.term for part in parts],
        microbatches=[_pack(share, count, max_tokens) for share in shares],
        signals=sorted(set.intersection(*(set(group.signals) for part in parts for group in part.groups))),
    )


def weighted(parts: Sequence[Part]) -> list[SampleRef]:
    """Each sample once, with its loss weight per trained token in each term. Raises ValueError as `plan_step` does."""
    found: dict[tuple[int, int], SampleRef] = {}
    for term, part in enumerate(parts):
        weights = iter(_weights(part))
        factors = part.factors or [1.0] * len(part.groups)
        for group, advantages, factor in zip(part.groups, part.advantages, factors, strict=True):
            _check_advantages(group, advantages)
            for index, (length, advantage) in enumerate(zip(group.lengths, advantages, strict=True)):
                new = SampleRef(
                    group.id, index, group.shard, length, advantage, [0.0] * len(parts), group.common_version
                )
                ref = found.setdefault((group.id, index), new)
                if ref.advantage != advantage:
                    raise ValueError(f"sample {index} of group {group.id} has two advantages in one step")
                ref.weights[term] = next(weights) * part.coefficient * factor
    return list(found.values())


def _has_gradient(ref: SampleRef, parts: Sequence[Part]) -> bool:
    others = [weight for weight, part in zip(ref.weights, parts, strict=True) if part.term != "policy"]
    return ref.advantage != 0 or any(others)


def _weights(part: Part) -> list[float]:
    trained = [n for group in part.groups for n in group.trained_tokens]
    if part.average == "pair":
        return [1 / len(part.groups)] * len(trained)
    flags = [True] * len(trained) if part.takes_part is None else [f for row in part.takes_part for f in row]
    if not any(flags):
        return [0.0] * len(trained)
    counted = [n for n, flag in zip(trained, flags, strict=True) if flag]
    episodes = [(group.id, e) for group in part.groups for e in group.episodes or range(len(group.rewards))]
    named = [episode for episode, flag in zip(episodes, flags, strict=True) if flag]
    try:
        # Also where own weights replace these: it refuses a part without a trained token.
        weights = iter(token_weights(counted, part.average, part.longest, named))
        if part.own_weights is not None:
            own = [weight for row in part.own_weights for weight in row]
            return [weight if flag else 0.0 for weight, flag in zip(own, flags, strict=True)]
        return [next(weights) if flag else 0.0 for flag in flags]
    except ValueError as error:
        raise ValueError(f"groups {[group.id for group in part.groups]}: {error}") from None


def _check_advantages(group: GroupMeta, advantages: Sequence[float]) -> None:
    if len(advantages) != len(group.rewards):
        raise ValueError(f"group {group.id}: {len(advantages)} advantages for {len(group.rewards)} samples")
    for index, advantage in enumerate(advantages):
        if not abs(advantage) <= _FLOAT32_MAX:  # NaN compares as False
            raise ValueError(
                f"the advantage of sample {index} of group {group.id} is {advantage}, which is not a finite number in "
                f"float32; the group's rewards are {group.rewards}"
            )


def _cost(length: int) -> float:
    """The relative compute of a sequence: linear layers plus causal attention.

    Attention costs as much as the linear layers at about 12 * hidden / 2 tokens. 16k is typical of the models
    that are trained on long sequences.
    """
    return length * (1 + length / 16_384)


@dataclass(frozen=True)
class _Unit:
    """Samples that no plan separates."""

    refs: list[SampleRef]
    width: int  # its tokens in a micro-batch, padding included

    @property
    def length(self) -> int:
        return sum(ref.length for ref in self.refs)

    @property
    def cost(self) -> float:
        return sum(_cost(ref.length) for ref in self.refs)


def _units(refs: Sequence[SampleRef], parts: Sequence[Part], pad_multiple: int) -> list[_Unit]:
    pairs = {group.id: group for part in parts if part.average == "pair" for group in part.groups}
    for group in pairs.values():
        if len(group.lengths) != 2 or 0 in group.trained_tokens:
            raise ValueError(f"group {group.id} is no pair: it needs two samples, each with trained tokens")
    joined: dict[tuple[int, int], list[SampleRef]] = {}
    for ref in refs:
        joined.setdefault((ref.group, 0 if ref.group in pairs else ref.index), []).append(ref)
    return [_Unit(some, sum(_padded(ref.length, pad_multiple) for ref in some)) for some in joined.values()]


def _spread(units: list[_Unit], ranks: int) -> list[list[_Unit]]:
    shares: list[list[_Unit]] = [[] for _ in range(ranks)]
    load = [0.0] * ranks
    for unit in sorted(units, key=lambda u: (-u.length, u.refs[0].group, u.refs[0].index)):
        lightest = min(range(ranks), key=lambda r: (load[r], r))
        shares[lightest].append(unit)
        load[lightest] += unit.cost
    return shares


def _fewest(units: list[_Unit], max_tokens: int) -> int:
    """The number of micro-batches that units need, longest first, each in the first one with room for it; at least 1.

    That is at most 11/9 of the best number (first fit decreasing; Johnson, 1973).
    """
    return len(_first_fit(units, max_tokens)) or 1


def _first_fit(units: list[_Unit], max_tokens: int) -> list[list[_Unit]]:
    cuts: list[list[_Unit]] = []
    room: list[int] = []
    for unit in units:
        at = next((i for i, left in enumerate(room) if left >= unit.width), None)
        if at is None:
            at = len(cuts)
            cuts.append([])
            room.append(max_tokens)
        cuts[at].append(unit)
        room[at] -= unit.width
    return cuts


def _pack(units: list[_Unit], count: int, max_tokens: int) -> list[MicroBatch]:
    """Packs units, longest first, into `count` micro-batches: each into the one with the least work and room for it.

    Where that leaves no room for a unit, it packs as `_first_fit` does, which needs no more than `count`.
    """
    cuts: list[list[_Unit]] = [[] for _ in range(count)]
    room, load = [max_tokens] * count, [0.0] * count
    for unit in units:
        fits = [i for i in range(count) if room[i] >= unit.width]
        if not fits:
            cuts = _first_fit(units, max_tokens)
            cuts += [[] for _ in range(count - len(cuts))]
            break
        at = min(fits, key=lambda i: (load[i], i))
        cuts[at].append(unit)
        room[at] -= unit.width
        load[at] += unit.cost
    return [MicroBatch([ref for unit in cut for ref in unit.refs]) for cut in cuts]


def _padded(length: int, multiple: int) -> int:
    return length + -length % multiple
