"""Mini-batches hold whole groups, each sample once, and their weights sum to one."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from tests.runtime.controller.reporting.test_numbers import group
from verst.runtime.controller.batch_plan import Part, plan_step
from verst.runtime.controller.mini_batches import plan_updates
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.step.updates import Update, of_step

OPTIONS = {"step": 4, "dp_size": 2, "max_tokens": 64, "pad_multiple": 1}


def part(count: int, average: str = "token") -> Part:
    groups = [group(i, [0.0, 1.0, 2.0]) for i in range(count)]
    return Part("policy", groups, [[-1.0, 0.0, 1.0]] * count, average)  # type: ignore[arg-type]


def of_update(plan: StepPlan, part: slice) -> list[tuple[int, int, float]]:
    return [
        (ref.group, ref.index, ref.weights[0])
        for rank in plan.microbatches
        for micro in rank[part]
        for ref in micro.samples
    ]


@pytest.mark.parametrize("average", ["token", "sample"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_each_epoch_trains_each_sample_once_and_splits_no_group(average: str, epochs: int) -> None:
    policy = part(6, average)
    tokens = {(g.id, i): n for g in policy.groups for i, n in enumerate(g.trained_tokens)}
    plan = plan_updates(parts=[policy], mini_batches=3, epochs=epochs, **OPTIONS)
    assert len(plan.updates) == 3 * epochs
    assert plan.updates[:3] * epochs == plan.updates
    seen: list[tuple[int, int]] = []
    for update in plan.updates[:3]:
        refs = of_update(plan, update)
        assert sum(tokens[g, i] * w for g, i, w in refs) == pytest.approx(1)
        assert len({g for g, _, _ in refs}) == 2
        seen += [(g, i) for g, i, _ in refs]
    assert sorted(seen) == sorted(tokens)


def test_each_mini_batch_has_its_share_of_every_source() -> None:
    """Sources of equal weight alternate, which a mini-batch of each second group would take apart."""
    policy = part(8)
    groups = [msgspec.structs.replace(g, source="ab"[g.id % 2]) for g in policy.groups]
    plan = plan_updates(
        parts=[dataclasses.replace(policy, groups=groups)], mini_batches=2, epochs=1, **OPTIONS
    )
    dealt = [sorted({g for g, _, _ in of_update(plan, update)}) for update in plan.updates]
    assert dealt == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_one_mini_batch_is_the_plain_plan() -> None:
    plan = plan_updates(parts=[part(3)], mini_batches=1, epochs=1, **OPTIONS)
    plain = plan_step(parts=[part(3)], **OPTIONS)
    assert plan.microbatches == plain.microbatches
    assert plan.updates == plain.updates


def test_a_mini_batch_without_a_trained_token_has_no_update() -> None:
    policy = part(2)
    groups = [policy.groups[0], msgspec.structs.replace(policy.groups[1], trained_tokens=[0, 0, 0])]
    plan = plan_updates(
        parts=[dataclasses.replace(policy, groups=groups)], mini_batches=2, epochs=2, **OPTIONS
    )
    assert len(plan.updates) == 2
    none = [msgspec.structs.replace(g, trained_tokens=[0, 0, 0]) for g in policy.groups]
    with pytest.raises(ValueError, match="no sample has a trained token"):
        plan_updates(parts=[dataclasses.replace(policy, groups=none)], mini_batches=2, epochs=2, **OPTIONS)


def test_a_steps_figures_are_means_over_its_updates() -> None:
    plan = plan_updates(parts=[part(4)], mini_batches=2, epochs=2, **OPTIONS)
    updates = [
        Update(1.0, 2.0, 0.3, {"trained_tokens": 5.0, "clip_fraction": 0.0, "logprob_mean_diff": 0.25}),
        Update(3.0, 4.0, 0.2, {"trained_tokens": 7.0, "clip_fraction": 0.5}),
    ] * 2
    assert of_step(updates, plan) == Update(
        2.0, 3.0, 0.2, {"trained_tokens": 12.0, "clip_fraction": 0.25, "logprob_mean_diff": 0.25}
    )


def test_a_term_keeps_its_groups_together_with_the_policys_and_has_no_weight_where_it_has_no_token() -> None:
    policy = part(4)
    good = [[False] * 3, [False] * 3, [True, False, False], [False] * 3]
    imitated = dataclasses.replace(policy, term="sft", average="token", takes_part=good, coefficient=0.5)
    plan = plan_updates(parts=[policy, imitated], mini_batches=2, epochs=1, **OPTIONS)
    assert plan.terms == ["policy", "sft"]
    weights = [
        {(r.group, r.index): r.weights[1] for k in plan.microbatches for m in k[update] for r in m.samples}
        for update in plan.updates
    ]
    assert [sorted({g for g, _ in found}) for found in weights] == [[0, 2], [1, 3]]
    assert weights[0].pop((2, 0)) == pytest.approx(0.5 / policy.groups[2].trained_tokens[0])
    assert not any(weight for found in weights for weight in found.values())
