"""Sample filters keep, mask or drop single samples; group filters say why they drop a group."""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.runtime.rollout import test_episodes
from tests.runtime.sample_factory import make_group
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.sample import Group
from verst.runtime.rollout.filters import not_truncated, pass_rate_between
from verst.runtime.rollout.sample_filters import drop_truncated, fates_of, mask_truncated, sifted

EPISODES = replace(test_episodes.EPISODES, vocabulary=1000)


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


SCRIBBLE: Any = None


def scribbles(group: Group) -> list[bool]:
    SCRIBBLE(group.samples)
    return [True] * len(group.samples)


SCRIBBLES: dict[str, tuple[Any, str]] = {
    "an object": (lambda s: s[0].metadata.update(mine=object()), "cannot encode"),
    "a name that is no text": (lambda s: s[0].metadata.update({3: 1}), "Expected `str`, got `int`"),
    "a list for an array": (lambda s: s[0].signals.update(x=[0.1]), "'list' object has no attribute 'dtype'"),
    "a part that is no number": (lambda s: s[0].scores.update(x=math.nan), "scores['x'] is nan"),
    "no sample": (lambda s: s.__setitem__(0, None), "AttributeError: 'NoneType' object"),
    "nothing": (lambda s: s.clear(), "group 7 has no samples"),
    "another order": (lambda s: s.reverse(), "place 0 holds sample 1"),
    "a token that is not there": (lambda s: s[0].response_ids.fill(1000), "outside the vocabulary of 1000"),
    "weights to come": (lambda s: s[0].weight_versions.fill(99), "newer than the engine's"),
}


@pytest.mark.parametrize("case", SCRIBBLES)
def test_what_a_filter_leaves_in_a_group_is_checked(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store or the trainer could not take it, and the worker would end again and again."""
    scribble, message = SCRIBBLES[case]
    monkeypatch.setattr(sys.modules[__name__], "SCRIBBLE", scribble)
    episodes = replace(EPISODES, sift=Hook("sample filter", f"{__name__}:scribbles"))
    with pytest.raises(HookError) as caught:
        asyncio.run(episodes.sifted(group("stop", "stop")))
    assert "group 7: left in the group what cannot be trained on: " in str(caught.value)
    assert message in str(caught.value)


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
