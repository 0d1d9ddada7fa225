"""Sample filters keep, mask or drop single samples; group filters say why they drop a group."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.runtime.rollout.test_episodes import EPISODES
from tests.runtime.sample_factory import make_group
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.sample import Group
from verst.runtime.rollout.filters import not_truncated, pass_rate_between
from verst.runtime.rollout.sample_filters import drop_truncated, fates_of, mask_truncated, sifted


def group(*finishes: str) -> Group:
    """Samples with the rewards 0, 1, 2, … that ended so."""
    made = make_group(7, samples=len(finishes))
    samples = [
        msgspec.structs.replace(sample, finish=finish, reward=float(n))
        for n, (sample, finish) in enumerate(zip(made.samples, finishes, strict=True))
    ]
    return Group(id=7, samples=samples, source="sums", row=3)


def test_masked_samples_keep_their_reward_and_lose_their_tokens() -> None:
    whole = group("stop", "length", "stop")
    left, counts = sifted(whole, mask_truncated(whole))
    assert counts == {"keep": 2, "mask": 1}
    assert left is not None
    left.validate()
    before, meta = whole.meta(0), left.meta(0)
    assert meta.rewards == [0, 1, 2]
    assert meta.trained_tokens == [before.trained_tokens[0], 0, before.trained_tokens[2]]
    assert (meta.source, meta.row) == ("sums", 3)
    assert whole.samples[1].loss_mask.any(), "the group that the filter saw is as it was"


def test_dropped_samples_are_gone_and_the_rest_is_numbered_anew() -> None:
    whole = group("length", "stop", "length", "stop")
    left, counts = sifted(whole, drop_truncated(whole))
    assert counts == {"keep": 2, "drop": 2}
    assert left is not None
    left.validate()
    assert left.meta(0).rewards == [1, 3]
    assert np.array_equal(left.samples[1].response_ids, whole.samples[3].response_ids)
    assert sifted(group("length"), ["drop"])[0] is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not a list with an entry for each sample"),
        ("keep", "not a list with an entry for each sample"),
        ([True], "returned 1 entries for 2 samples"),
        ([True, None], "for a sample; it must be"),
        ([True, 1], "for a sample; it must be"),
        ([True, "delete"], "for a sample; it must be"),
    ],
)
def test_what_is_no_list_of_fates(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fates_of(group("stop", "stop"))(value)


def test_bools_mean_keep_and_mask() -> None:
    assert fates_of(group("stop", "stop"))(np.array([True, False])) == ["keep", "mask"]


def forgets(group: Group) -> list[bool]:
    return [True]


def test_the_recipes_sample_filter_is_called_and_its_faults_are_named() -> None:
    whole = group("stop", "length")
    path = "verst.runtime.rollout.sample_filters:mask_truncated"
    episodes = replace(EPISODES, sift=Hook("sample filter", path))
    left, counts = asyncio.run(episodes.sifted(whole))
    assert left is not None
    assert (left.meta(0).trained_tokens[1], counts["mask"]) == (0, 1)
    assert asyncio.run(EPISODES.sifted(whole)) == (whole, Counter())
    wrong = replace(EPISODES, sift=Hook("sample filter", f"{__name__}:forgets"))
    with pytest.raises(
        HookError, match=r"sample filter '.*:forgets', group 7: returned 1 entries for 2 samples"
    ):
        asyncio.run(wrong.sifted(whole))


def scribbles(group: Group) -> list[bool]:
    group.samples[0].metadata["mine"] = object()
    return [True] * len(group.samples)


def test_what_a_sample_filter_leaves_in_a_group_is_checked() -> None:
    """The store could not take it, and the worker would end again and again."""
    episodes = replace(EPISODES, sift=Hook("sample filter", f"{__name__}:scribbles"))
    with pytest.raises(HookError, match=r"group 7: left in the group what cannot be sent: cannot encode"):
        asyncio.run(episodes.sifted(group("stop", "stop")))


def test_group_filters_say_why() -> None:
    assert not_truncated(group("stop", "stop"))[0] is True
    assert not_truncated(group("stop", "length")) == (False, "truncated")
    balanced = pass_rate_between(1.0, 2.0)
    means = {2: 0.5, 3: 1.0, 5: 2.0, 6: 2.5}  # samples -> mean reward
    decisions = {n: balanced(group(*["stop"] * n)) for n in means}
    assert [kept for kept, _ in decisions.values()] == [False, True, True, False]
    assert (decisions[2][1], decisions[6][1]) == ("too_hard", "too_easy")
    # A right episode of three samples, and a wrong one of one.
    whole = group(*["stop"] * 4)
    samples = [
        msgspec.structs.replace(sample, episode=int(n == 3), reward=float(n < 3))
        for n, sample in enumerate(whole.samples)
    ]
    assert pass_rate_between(0.4, 0.6)(msgspec.structs.replace(whole, samples=samples))[0] is True
    with pytest.raises(ValueError, match=r"low is 0\.9, above high"):
        pass_rate_between(0.9, 0.1)
