"""Plans the updates of one step: mini-batches of whole prompt groups, trained on for some epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec

from verst.runtime.controller.batch_plan import Part, plan_step, weighted
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import MicroBatch, StepPlan


def plan_updates(*, parts: Sequence[Part], mini_batches: int, epochs: int, **options: Any) -> StepPlan:
    """Plans a step of `mini_batches * epochs` updates; `options` are those of `plan_step`, which plans each mini-batch.

    Groups are dealt in turn to the mini-batches, source after source, so that each gets the same share of every source,
    and of groups that finished early and late. The first part has them all. A part's weights sum to one over each
    mini-batch. A mini-batch without a trained token has no update.

    Raises ValueError as `plan_step` does.
    """
    split = _split(parts, mini_batches)
    plans = [plan_step(parts=some, **options) for some in split if any(_trains(part) for part in some)]
    if not plans:  # it says why there is nothing to train on
        return plan_step(parts=parts, **options)
    ranks = zip(*(plan.microbatches for plan in plans), strict=True)
    return msgspec.structs.replace(
        plans[0],
        microbatches=[[micro for of_plan in rank for micro in of_plan] for rank in ranks],
        mini_batches=[len(plan.microbatches[0]) for plan in plans],
        epochs=epochs,
        signals=sorted(set.intersection(*(set(plan.signals) for plan in plans))),
    )


def dealt(groups: Sequence[GroupMeta], mini_batches: int) -> dict[int, int]:
    """The mini-batch of each group, by the group's number."""
    # Sources alternate (`data/mixture.py`): dealt as they come, two of them would be a mini-batch each.
    in_turn = sorted(groups, key=lambda group: group.source)
    return {group.id: i % mini_batches for i, group in enumerate(in_turn)}


def weighted_again(plan: StepPlan, parts: Sequence[Part], mini_batches: int) -> StepPlan:
    """The same micro-batches with the terms, advantages and weights of these parts.

    A part's weights sum to one over each mini-batch of which a trained token takes part, and are 0 in others.

    Raises ValueError as `plan_step` does, and KeyError for a sample of the plan that no part has.
    """
    refs = {(ref.group, ref.index): ref for some in _split(parts, mini_batches) for ref in weighted(some)}
    microbatches = [
        [MicroBatch([refs[ref.group, ref.index] for ref in cut.samples]) for cut in rank]
        for rank in plan.microbatches
    ]
    return msgspec.structs.replace(plan, terms=[part.term for part in parts], microbatches=microbatches)


def _split(parts: Sequence[Part], mini_batches: int) -> list[list[Part]]:
    """The parts of each mini-batch."""
    place = dealt(parts[0].groups, mini_batches)
    return [[_share(part, place, m) for part in parts] for m in range(mini_batches)]


def _share(part: Part, place: dict[int, int], number: int) -> Part:
    """The part of one mini-batch. Where none of its tokens are there, none of its samples takes part."""
    chosen = [i for i, group in enumerate(part.groups) if place[group.id] == number]
    share = dataclasses.replace(
        part,
        groups=[part.groups[i] for i in chosen],
        advantages=[part.advantages[i] for i in chosen],
        factors=part.factors and [part.factors[i] for i in chosen],
        takes_part=part.takes_part and [part.takes_part[i] for i in chosen],
        own_weights=part.own_weights and [part.own_weights[i] for i in chosen],
    )
    if _trains(share):
        return share
    return dataclasses.replace(share, takes_part=[[False] * len(group.rewards) for group in share.groups])


def _trains(part: Part) -> bool:
    """Whether a trained token takes part."""
    flags = part.takes_part or [[True] * len(group.rewards) for group in part.groups]
    return any(
        n and flag
        for group, row in zip(part.groups, flags, strict=True)
        for n, flag in zip(group.trained_tokens, row, strict=True)
    )
