"""Advantages of equal rewards are exactly 0, and rewards of any size give the advantages of their closed form."""

from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.algorithms.token_batches import config
from verst.runtime.algorithms import advantages
from verst.runtime.algorithms.advantages import RELATIVE_TO_GROUP
from verst.runtime.messages.sample import GroupMeta


def group(rewards: list[float], tokens: list[int] | None = None, id: int = 0) -> GroupMeta:
    count = len(rewards)
    return GroupMeta(
        id=id, shard=0, lengths=[9] * count, trained_tokens=tokens or [4] * count, rewards=rewards,
        finish=["stop"] * count, oldest_version=0, scores={"all": list(rewards)},
    )  # fmt: skip


def one_group(name: str):
    """An advantage function, of the rewards of a single group."""
    function = getattr(advantages, name)
    return lambda rewards: function([group(rewards)])[0]


HOME = "verst.runtime.algorithms.advantages:"
groups_with_tokens = st.lists(
    st.lists(st.tuples(st.floats(-9, 9, allow_subnormal=False), st.integers(0, 9)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
).map(lambda rows: [group([r for r, _ in row], [n for _, n in row], i) for i, row in enumerate(rows)])
group_normalised, group_normalised_sample, group_centred, leave_one_out = ALL = [
    one_group(name)
    for name in ("group_normalised", "group_normalised_sample", "group_centred", "leave_one_out")
]
finite = st.floats(-1e308, 1e308)


@pytest.mark.parametrize("advantage", ALL)
@given(reward=finite, count=st.integers(1, 40))
def test_equal_rewards_have_no_advantage(advantage, reward, count):
    assert advantage([reward] * count) == [0.0] * count


@pytest.mark.parametrize("advantage", ALL)
@pytest.mark.parametrize(
    ("count", "reward"), [(3, 0.1), (3, 0.7), (6, 0.1), (7, 0.2), (8, 0.35), (3, 123.456)]
)
def test_rounding_gives_equal_rewards_no_advantage(advantage, count, reward):
    assert advantage([reward] * count) == [0.0] * count


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2, max_size=16))
def test_advantages_are_those_of_exact_arithmetic(rewards):
    mean = sum(map(Fraction, rewards)) / len(rewards)
    exact = [float(Fraction(r) - mean) for r in rewards]
    largest = max(map(abs, rewards))
    assert group_centred(rewards) == pytest.approx(exact, abs=1e-15 * largest, rel=1e-12)
    count = len(rewards)
    others = [d * count / (count - 1) for d in exact]
    assert leave_one_out(rewards) == pytest.approx(others, abs=3e-15 * largest, rel=1e-12)
    for advantage, spread in (
        (group_normalised, statistics.pstdev),
        (group_normalised_sample, statistics.stdev),
    ):
        deviation = spread(map(Fraction, rewards))
        normalised = [d / (deviation + 1e-6) for d in exact]
        assert advantage(rewards) == pytest.approx(
            normalised, abs=1e-14 * largest / (deviation + 1e-6), rel=1e-9
        )


@pytest.mark.parametrize("size", [1e154, 1e200, 1e308])
def test_the_largest_rewards_have_the_advantages_of_small_ones(size):
    rewards = [size, 0.0, -size, 0.0]
    assert group_normalised(rewards) == pytest.approx([2**0.5, 0, -(2**0.5), 0], rel=1e-12)
    assert group_centred(rewards) == pytest.approx([size, 0, -size, 0], rel=1e-12)
    assert leave_one_out(rewards) == pytest.approx([size / 3 * 4, 0, -size / 3 * 4, 0], rel=1e-12)


@pytest.mark.parametrize("advantage", ALL)
@given(rewards=st.lists(finite, min_size=1, max_size=12))
def test_no_finite_reward_raises(advantage, rewards):
    assert len(advantage(rewards)) == len(rewards)


@pytest.mark.parametrize("path", RELATIVE_TO_GROUP)
def test_functions_relative_to_the_group_teach_nothing_about_a_group_of_one(path):
    function = getattr(advantages, path.removeprefix("verst.runtime.algorithms.advantages:"))
    assert function([group([1.0], id=1), group([0.25], id=2)]) == [[0.0], [0.0]]


def test_normalised_advantages_have_mean_zero_and_unit_spread() -> None:
    assert group_normalised([1.0, 0.0, 0.0, 1.0]) == pytest.approx([1, -1, -1, 1], rel=1e-5)
    assert group_normalised([0.5, 0.5, 0.5]) == [0.0, 0.0, 0.0]


def test_the_sample_deviation_divides_by_one_less() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.25, 0.5]
    deviation = statistics.stdev(rewards) + 1e-6
    expected = [(r - statistics.fmean(rewards)) / deviation for r in rewards]
    assert group_normalised_sample(rewards) == pytest.approx(expected, rel=1e-9)
    population = group_normalised(rewards)
    assert population == pytest.approx(
        [a * (8 / 7) ** 0.5 for a in group_normalised_sample(rewards)], rel=1e-5
    )
    assert group_normalised_sample([0.1] * 3) == [0.0] * 3
    assert group_normalised_sample([7.0]) == [0.0]
    assert group_normalised_sample([1e200, -1e200]) == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_centred_advantages_keep_the_scale_of_rewards() -> None:
    assert group_centred([3.0, 1.0, 2.0]) == [1.0, -1.0, 0.0]


def test_leave_one_out_compares_with_the_others() -> None:
    assert leave_one_out([3.0, 0.0, 0.0]) == [3.0, -1.5, -1.5]
    assert leave_one_out([7.0]) == [0.0]


@pytest.mark.parametrize("k", [2, 3, 5])
@given(rewards=st.lists(st.integers(-3, 3).map(float), min_size=5, max_size=7))
def test_pkpo_is_the_mean_over_all_choices_of_others(k, rewards):
    """Eq. 33 of arXiv:2505.15201 by enumeration, times the number of samples."""
    count = len(rewards)
    expected = []
    for index, reward in enumerate(rewards):
        others = rewards[:index] + rewards[index + 1 :]
        choices = [max(choice) for choice in itertools.combinations(others, k - 1)]
        expected.append(k / len(choices) * sum(max(reward, best) - best for best in choices))
    assert advantages.pass_at_k([group(rewards)], k)[0] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert advantages.pass_at_k([group([0.1] * count)], k) == [[0.0] * count]


@pytest.mark.parametrize("k", [2, 3])
def test_pkpos_gradient_is_that_of_the_expected_best_of_k(k):
    """Exactly, over all groups of four answers that a policy over three answers can give."""
    theta, rewards, count = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64), [0.0, 1.0, 0.25], 4

    def chance(logp, answers):
        return logp[list(answers)].sum().exp()

    leaf = theta.clone().requires_grad_()
    logp = leaf.log_softmax(-1)
    best = sum(chance(logp, a) * max(rewards[i] for i in a) for a in itertools.product(range(3), repeat=k))
    (exact,) = torch.autograd.grad(best, leaf)
    logp = leaf.log_softmax(-1)
    estimate = torch.zeros((), dtype=torch.float64)
    for answers in itertools.product(range(3), repeat=count):
        (found,) = advantages.pass_at_k([group([rewards[i] for i in answers])], k)
        mean = sum(a * logp[i] for a, i in zip(found, answers, strict=True)) / count
        estimate = estimate + chance(logp.detach(), answers) * mean
    (gradient,) = torch.autograd.grad(estimate, leaf)
    torch.testing.assert_close(gradient, exact)


def test_pkpo_has_no_signal_in_a_group_from_which_a_sample_filter_left_too_few():
    """`drop_truncated` may leave two answers of four: no reason to end the run."""
    found = advantages.pass_at_k([group([1.0, 0.0]), group([1.0, 0.0, 0.0])], 3)
    assert found == [[0.0, 0.0], [3.0, 0.0, 0.0]]


def test_gpg_makes_up_for_groups_without_a_signal():
    """arXiv:2504.02546: alpha = B / (B - M), here 7 / 4."""
    found = advantages.group_centred_rescaled([group([1.0, 0.0, 0.0, 1.0]), group([0.1] * 3)])
    assert found[0] == pytest.approx([0.5 * 7 / 4 * sign for sign in (1, -1, -1, 1)], rel=1e-15)
    assert found[1] == [0.0] * 3
    assert advantages.group_centred_rescaled([group([1.0] * 3)]) == [[0.0] * 3]


def parts(**scores: list[float]) -> GroupMeta:
    return msgspec.structs.replace(group([0.0] * len(next(iter(scores.values())))), scores=scores)


@pytest.mark.parametrize("weights", [None, {"right": 1.0, "brief": 0.3}, {"brief": -2.0}])
def test_gdpo_normalises_each_part_apart(weights):
    """arXiv:2601.05242: by part and group, then weighted, summed and normalised over the samples of the step."""
    groups = [
        parts(right=[1.0, 0.0, 1.0, 1.0], brief=[-3.0, -1.0, -7.0, 0.5]),
        parts(right=[0.0] * 2, brief=[2.0, 5.0]),
    ]
    used = weights or {"right": 1.0, "brief": 1.0}
    sums = []
    for one in groups:
        total = np.zeros(len(one.rewards))
        for name, weight in used.items():
            part = np.array(one.scores[name])
            total += weight * (part - part.mean()) / (part.std() + 1e-6)
        sums.append(total)
    whole = np.concatenate(sums)
    expected = [(s - whole.mean()) / (whole.std() + 1e-6) for s in sums]
    found = advantages.decoupled(groups, weights)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs.tolist(), rel=1e-9)


def test_gdpo_needs_the_parts():
    with pytest.raises(ValueError, match="the rewards have no parts"):
        advantages.decoupled([msgspec.structs.replace(group([1.0, 0.0]), scores={})])
    with pytest.raises(ValueError, match="a sample of group 0 has no part 'brief'; the group's parts: right"):
        advantages.decoupled([parts(right=[1.0, 0.0])], {"brief": 1.0})
    with pytest.raises(ValueError, match="has no part 'right'"):
        advantages.decoupled([parts(right=[1.0, math.nan])])


@given(groups=groups_with_tokens)
def test_whitening_is_over_the_tokens_of_the_step_and_clipping_after_it(groups):
    made = config(advantage_whiten=True, advantage_clip=0.8)
    flat = np.concatenate([np.repeat(g.rewards, g.trained_tokens) for g in groups])
    if not len(flat) or flat.std() < 1e-3:
        return
    expected = [np.clip((np.array(g.rewards) - flat.mean()) / (flat.std() + 1e-6), -0.8, 0.8) for g in groups]
    found = advantages.shaped([g.rewards for g in groups], groups, made)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs.tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("reward", "masked"), [(1.0, 0.0), (0.1, -3.0), (1.0, 1e33)])
def test_a_masked_sample_makes_no_advantage_of_equal_rewards(reward, masked):
    """The mean of 49 equal rewards is rounded, and the spread that it is divided by is that of no token at all."""
    groups = [group([reward] * 49, [1] * 49), group([masked], [0])]
    made = config(advantage_whiten=True)
    assert advantages.shaped([g.rewards for g in groups], groups, made) == [[0.0] * 49, [0.0]]
    assert advantages.step_normalised(groups) == [[0.0] * 49, [0.0]]


def test_without_an_option_advantages_stay_as_they_are():
    values = [[1e30, -3.0], [0.1]]
    assert advantages.shaped(values, [group([1.0, 0.0]), group([0.0])], config()) == values
    whitened = advantages.shaped([[0.1] * 3], [group([0.0] * 3)], config(advantage_whiten=True))
    assert whitened == [[0.0] * 3]


def test_an_advantage_function_gets_its_options():
    assert advantages.options_of(config()) == ()
    assert advantages.options_of(config(advantage=f"{HOME}pass_at_k", samples_per_prompt=4, pass_k=3)) == (3,)
    assert advantages.options_of(config(advantage=f"{HOME}decoupled", score_weights={"a": 2})) == (
        {"a": 2.0},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pass_k": 3}, "pass_k is 3, but only the advantage pass_at_k uses it"),
        ({"score_weights": {"a": 1.0}, "advantage": "my:own"}, "only the advantage decoupled uses it"),
        ({"advantage": f"{HOME}pass_at_k", "pass_k": 3}, "pass_k is 3, above samples_per_prompt, which is 2"),
        (
            {"advantage": f"{HOME}step_normalised", "advantage_whiten": True},
            "is normalised over the step already",
        ),
        ({"advantage": f"{HOME}decoupled", "score_weights": {}}, "at least 1 item"),
        ({"imitation_reward": 0.5}, "has no effect without imitation_coef"),
    ],
)
def test_an_option_of_another_advantage_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


groups_of_a_step = st.lists(
    st.lists(st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 50)), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
).map(lambda rows: [group([r for r, _ in row], [n for _, n in row], i) for i, row in enumerate(rows)])


@given(groups_of_a_step)
def test_maxrl_divides_the_difference_by_the_mean(groups):
    """arXiv:2602.02710: the mean over the group of A * grad log p is the mean over successes minus that over all."""
    for made, found in zip(groups, advantages.mean_normalised(groups), strict=True):
        rewards = np.array(made.rewards)
        mean = rewards.mean()
        expected = (rewards - mean) / mean if np.ptp(rewards) else np.zeros(len(rewards))
        assert found == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


def test_maxrl_refuses_rewards_that_are_no_rates():
    with pytest.raises(ValueError, match="needs rewards of 0 and above, and the group has -1"):
        advantages.mean_normalised([group([1.0, -1.0])])


@given(groups_of_a_step)
def test_opo_weighs_the_baseline_by_length(groups):
    for made, found in zip(groups, advantages.length_weighted(groups), strict=True):
        tokens = np.array(made.trained_tokens, float)
        tokens = tokens if tokens.any() else np.ones(len(tokens))
        rewards = np.array(made.rewards)
        expected = rewards - (tokens * rewards).sum() / tokens.sum()
        assert found == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9 * max(1.0, rewards.max()))


@pytest.mark.parametrize(
    ("name", "baseline"), [("step_normalised", False), ("step_normalised_baseline", True)]
)
@given(groups=groups_of_a_step)
def test_reinforce_plus_plus_normalises_over_the_tokens_of_the_step(name, baseline, groups):
    """arXiv:2501.03262: as if each token had its sample's reward, normalised over all tokens."""
    found = [a for row in getattr(advantages, name)(groups) for a in row]
    rewards = np.concatenate(
        [np.array(g.rewards) - (np.mean(g.rewards) if baseline else 0.0) for g in groups]
    )
    tokens = np.concatenate([g.trained_tokens for g in groups])
    tokens = tokens if tokens.any() else np.ones(len(tokens), int)
    flat = np.repeat(rewards, tokens)
    expected = (rewards - flat.mean()) / (flat.std() + 1e-6)
    size = max(1.0, np.abs(rewards).max())
    if np.ptp(rewards) <= 1e-9 * size or flat.std() <= 1e-6 * size:
        return  # rounding in numpy's own mean is as large as the signal
    assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


def test_reinforce_plus_plus_without_a_signal_is_exactly_zero():
    equal = [group([0.1, 0.1, 0.1]), group([0.1])]
    assert advantages.step_normalised(equal) == [[0.0] * 3, [0.0]]
    assert advantages.step_normalised_baseline([group([0.1] * 3), group([0.7] * 6)]) == [[0.0] * 3, [0.0] * 6]


def test_a_function_of_one_group_becomes_one_of_the_step():
    best = advantages.per_group(lambda rewards: [float(r == max(rewards)) for r in rewards])
    assert best([group([1.0, 3.0]), group([2.0])]) == [[0.0, 1.0], [1.0]]
