"""A step's plan trains every sample once, with weights that sum to one, on ranks of even load."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.algorithms.token_batches import config
from verst.runtime.controller.batch_plan import Part, plan_step
from verst.runtime.controller.imitation import good_answers
from verst.runtime.messages.sample import GroupMeta


def meta(id: int, lengths: list[int], trained: list[int] | None = None) -> GroupMeta:
    n = len(lengths)
    return GroupMeta(
        id=id,
        shard=id % 3,
        lengths=lengths,
        trained_tokens=trained or [max(1, length // 2) for length in lengths],
        rewards=[0.0] * n,
        finish=["stop"] * n,
        oldest_version=0,
    )


groups = st.lists(st.lists(st.integers(2, 500), min_size=1, max_size=8), min_size=1, max_size=12).map(
    lambda rows: [meta(i, row) for i, row in enumerate(rows)]
)


def part(groups, advantages=None, average="token", term="policy", **more):
    return Part(term, groups, advantages or [[0.5] * len(g.lengths) for g in groups], average, **more)


def plan(groups, advantages=None, average="token", **changes):
    settings = {
        "step": 3,
        "parts": [part(groups, advantages, average)],
        "dp_size": 2,
        "max_tokens": 1024,
        "pad_multiple": 4,
    }
    return plan_step(**(settings | changes))


def refs(made):
    return {(r.group, r.index): r for rank in made.microbatches for m in rank for r in m.samples}


@given(groups, st.integers(1, 5), st.sampled_from([1, 4, 16]), st.sampled_from([1, 2, 4]))
def test_every_sample_is_planned_once_within_the_budget_and_counts_agree(groups, dp, multiple, count):
    made = plan(groups, dp_size=dp, pad_multiple=multiple, count_multiple=count)
    seen = [(r.group, r.index) for rank in made.microbatches for m in rank for r in m.samples]
    assert sorted(seen) == [(g.id, i) for g in groups for i in range(len(g.lengths))]
    assert len({len(rank) for rank in made.microbatches}) == 1
    assert len(made.microbatches) == dp
    assert len(made.microbatches[0]) % count == 0
    for rank in made.microbatches:
        widths = [[math.ceil(r.length / multiple) * multiple for r in m.samples] for m in rank]
        assert all(sum(row) <= 1024 for row in widths)
        # Two micro-batches that are both at most half full would have been one.
        assert len(rank) < 2 * needed(made, multiple) + count


def needed(made, multiple):
    """The least micro-batches that the fullest rank could need."""
    tokens = [
        sum(math.ceil(r.length / multiple) * multiple for m in rank for r in m.samples)
        for rank in made.microbatches
    ]
    return max(1, math.ceil(max(tokens) / 1024))


def test_a_budget_counts_the_samples_own_tokens_and_not_the_longest_times_their_number():
    lengths = [900, 20, 24, 28, 30, 8]  # as rows of the longest they would need six micro-batches of 1024
    made = plan([meta(0, lengths)], dp_size=1, pad_multiple=2)
    assert [sum(r.length for r in m.samples) for m in made.microbatches[0]] == [1010]


def test_micro_batches_of_a_rank_have_even_work():
    made = plan([meta(i, [100 + 7 * i, 300, 40, 220]) for i in range(8)], dp_size=1, count_multiple=4)
    loads = [sum(r.length for r in m.samples) for m in made.microbatches[0]]
    assert len(loads) == 8
    assert max(loads) <= 1.1 * min(loads)


@given(groups, st.sampled_from(["token", "sample", "episode"]))
def test_token_weights_sum_to_one(groups, average):
    made = plan(groups, average=average)
    tokens = {(g.id, i): n for g in groups for i, n in enumerate(g.trained_tokens)}
    total = sum(
        r.weights[0] * tokens[r.group, r.index] for rank in made.microbatches for m in rank for r in m.samples
    )
    assert math.isclose(total, 1.0, rel_tol=1e-9)


def test_the_samples_of_an_episode_count_as_one():
    groups = [
        msgspec.structs.replace(meta(0, [10, 20, 30], [2, 6, 3]), episodes=[0, 0, 1]),
        msgspec.structs.replace(meta(1, [8, 8], [0, 5]), episodes=[0, 1]),  # the first has no trained token
        meta(2, [9], [7]),
    ]
    weights = {key: ref.weights[0] for key, ref in refs(plan(groups, average="episode", dp_size=1)).items()}
    expected = {(0, 0): 1 / 8, (0, 1): 1 / 8, (0, 2): 1 / 3, (1, 1): 1 / 5, (2, 0): 1 / 7}
    assert {key: weights[key] for key in expected} == pytest.approx({k: w / 4 for k, w in expected.items()})


def test_good_answers_are_imitated_by_the_mean_over_their_tokens():
    """VAPO, arXiv:2504.05118: mu / (tokens of good answers); the policy's weights stay as they are."""
    groups = [meta(0, [10, 20, 30], [4, 6, 0]), meta(1, [8, 8], [3, 3])]
    groups = [
        msgspec.structs.replace(g, rewards=r)
        for g, r in zip(groups, ([1.0, 0.0, 1.0], [0.9, 0.4]), strict=True)
    ]
    advantages = [[0.5, 0.0, 0.5], [0.0, 0.0]]
    options = {"imitation_coef": 0.1, "imitation_reward": 0.9, "loss_average": "sample"}
    imitated = good_answers(groups, advantages, config(**options))
    made = plan(
        groups, parts=[part(groups, advantages, "sample"), *imitated], skip_zero_advantage=True, dp_size=1
    )
    assert made.terms == ["policy", "sft"]
    weights = {key: ref.weights for key, ref in refs(made).items()}
    per_token = pytest.approx(0.1 / 7, rel=1e-12)
    assert weights == {
        (0, 0): [pytest.approx(1 / 16), per_token],
        (0, 2): [pytest.approx(1 / 4), per_token],  # good, without a trained token
        (1, 0): [pytest.approx(1 / 12), per_token],  # without an advantage, but imitated
    }


def test_without_a_good_answer_nothing_is_imitated():
    groups = [meta(0, [10, 20])]
    assert good_answers(groups, [[0.0, 0.0]], config(imitation_coef=0.1)) == []
    right = [msgspec.structs.replace(groups[0], rewards=[1.0, 0.0], trained_tokens=[0, 3])]
    assert good_answers(right, [[0.0, 0.0]], config(imitation_coef=0.1)) == []
    assert good_answers(right, [[0.0, 0.0]], config()) == []


def test_the_constant_average_gives_all_tokens_one_weight_whatever_the_lengths():
    groups = [meta(0, [10, 300], [4, 200]), meta(1, [50], [30])]
    made = plan_step(
        step=0,
        parts=[part(groups, average="constant", longest=256)],
        dp_size=1,
        max_tokens=1024,
        pad_multiple=1,
    )
    assert {tuple(r.weights) for r in refs(made).values()} == {(1 / (3 * 256),)}
    with pytest.raises(ValueError, match="needs the most tokens"):
        plan(groups, average="constant")


def test_a_step_of_two_terms_trains_each_sample_once_with_a_weight_in_each():
    both, only_imitated = meta(0, [10, 20], [5, 5]), meta(1, [30], [10])
    parts = [part([both]), part([both, only_imitated], term="sft", average="sample", coefficient=0.5)]
    made = plan_step(step=0, parts=parts, dp_size=2, max_tokens=64, pad_multiple=1)
    assert made.terms == ["policy", "sft"]
    found = refs(made)
    assert found[0, 0].weights == pytest.approx([1 / 10, 0.5 / (3 * 5)])
    assert found[1, 0].weights == pytest.approx([0.0, 0.5 / (3 * 10)])
    with pytest.raises(ValueError, match="sample 0 of group 0 has two advantages"):
        plan([both], parts=[part([both]), part([both], advantages=[[1.0, 1.0]], term="sft")])


def test_the_plan_names_the_signals_that_all_samples_bring():
    first, second = meta(0, [10]), meta(1, [10])
    first, second = (
        msgspec.structs.replace(first, signals=["teacher", "other"]),
        msgspec.structs.replace(second, signals=["teacher"]),
    )
    assert plan([first, second]).signals == ["teacher"]


def test_ranks_get_even_work():
    made = plan([meta(i, [100 + 7 * i, 300, 40, 220]) for i in range(8)], dp_size=4)
    loads = [sum(r.length for m in rank for r in m.samples) for rank in made.microbatches]
    assert max(loads) <= 1.1 * min(loads)


def test_a_rank_without_samples_gets_empty_micro_batches():
    made = plan([meta(0, [10])], dp_size=3)
    assert [[len(m.samples) for m in rank] for rank in made.microbatches] == [[1], [0], [0]]


def test_samples_without_advantage_are_left_out_and_still_count_in_the_mean():
    groups = [meta(0, [10, 12]), meta(1, [8, 8])]
    advantages = [[1.0, -1.0], [0.0, 0.0]]
    whole = plan(groups, advantages=advantages, dp_size=1)
    short = plan(groups, advantages=advantages, dp_size=1, skip_zero_advantage=True)
    planned = refs(whole)
    kept = [r for m in short.microbatches[0] for r in m.samples]
    assert sorted((r.group, r.index) for r in kept) == [(0, 0), (0, 1)]
    assert all(planned[r.group, r.index] == r for r in kept)
    nothing = plan(groups, advantages=[[0.0] * 2] * 2, dp_size=2, skip_zero_advantage=True)
    assert sum(len(m.samples) for rank in nothing.microbatches for m in rank) == 1


def test_a_sample_without_advantage_stays_where_it_is_imitated():
    plain, both = meta(0, [10, 12]), meta(1, [8, 8])
    zero = [[0.0, 0.0], [0.0, 0.0]]
    made = plan_step(
        step=0, parts=[part([plain, both], zero), part([both], zero[1:], term="sft")], dp_size=1, max_tokens=64,
        pad_multiple=1, skip_zero_advantage=True,
    )  # fmt: skip
    assert sorted(refs(made)) == [(1, 0), (1, 1)]


def test_a_sample_over_the_budget_is_named():
    with pytest.raises(
        ValueError, match=r"sample 1 of group 5 has 2000 tokens.*max_tokens_per_microbatch is 1024"
    ):
        plan([meta(5, [10, 2000])])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_an_advantage_that_is_not_finite_in_float32_is_named(value):
    with pytest.raises(ValueError, match=r"advantage of sample 1 of group 5 is (nan|-?inf|1e\+39)"):
        plan([meta(5, [10, 20])], advantages=[[0.5, value]])


@pytest.mark.parametrize("advantages", [[], [0.5], [0.5] * 3])
def test_a_wrong_number_of_advantages_is_named(advantages):
    with pytest.raises(ValueError, match=f"group 5: {len(advantages)} advantages for 2 samples"):
        plan([meta(5, [10, 20])], advantages=[advantages])


def test_a_step_without_trained_tokens_is_refused():
    with pytest.raises(ValueError, match="no sample has a trained token"):
        plan([meta(5, [10], trained=[0])])


pairs_of_lengths = st.lists(st.tuples(st.integers(2, 500), st.integers(2, 500)), min_size=1, max_size=12)


@given(
    pairs_of_lengths, st.integers(1, 4), st.sampled_from([1, 4, 16]), st.sampled_from([1, 2]), st.booleans()
)
def test_both_answers_of_a_pair_stay_together_in_order(lengths, dp, multiple, count, imitated):
    pairs = [meta(-1 - i, list(both)) for i, both in enumerate(lengths)]
    signs = [[1.0, -1.0]] * len(pairs)
    parts = [part(pairs, signs, "pair", "dpo")]
    if imitated:
        flags = [[True, False]] * len(pairs)
        parts.append(part(pairs, signs, "sample", "sft", coefficient=0.3, takes_part=flags))
    made = plan(pairs, parts=parts, dp_size=dp, pad_multiple=multiple, count_multiple=count, max_tokens=1040)
    seen = []
    for rank in made.microbatches:
        assert len(rank) == len(made.microbatches[0])
        assert len(rank) % count == 0
        for micro in rank:
            names = [(ref.group, ref.index) for ref in micro.samples]
            assert names == [(group, index) for group, _ in names[::2] for index in range(2)]
            assert sum(math.ceil(ref.length / multiple) * multiple for ref in micro.samples) <= 1040
            assert all(ref.advantage == (1.0, -1.0)[ref.index] for ref in micro.samples)
            seen += names
    assert sorted(seen) == sorted((g.id, i) for g in pairs for i in range(2))
    weights = {key: ref.weights for key, ref in refs(made).items()}
    assert {w[0] for w in weights.values()} == {1 / len(pairs)}
    if imitated:
        of_chosen = {g.id: 0.3 / len(pairs) / g.trained_tokens[0] for g in pairs}
        assert {key: w[1] for key, w in weights.items()} == pytest.approx(
            {(g, i): w if i == 0 else 0.0 for g, w in of_chosen.items() for i in range(2)}
        )


def test_a_pair_that_no_micro_batch_holds_and_half_a_pair_are_named():
    pair = [meta(-1, [5, 8])]
    parts = [part(pair, [[1.0, -1.0]], "pair", "dpo")]
    assert plan(pair, parts=parts, pad_multiple=1, max_tokens=13).microbatches
    with pytest.raises(ValueError, match=r"the pair of group -1 has 13 tokens; .* is 12"):
        plan(pair, parts=parts, pad_multiple=1, max_tokens=12)
    for wrong in (meta(-1, [5]), meta(-1, [5, 8], [2, 0]), meta(-1, [5, 8, 3])):
        signs = [[1.0, -1.0, 0.0][: len(wrong.lengths)]]
        with pytest.raises(ValueError, match="group -1 is no pair"):
            plan([wrong], parts=[part([wrong], signs, "pair", "dpo")])
