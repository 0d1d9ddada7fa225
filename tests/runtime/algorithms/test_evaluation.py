"""The figures of an evaluation, each against a reference that computes it another way."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from verst.runtime.algorithms.evaluation import Scale, figures, half_width, majority, pass_at_k
from verst.runtime.messages.jobs import EvalAnswers


def answers(rewards: list[float], votes: list[str | None] | None = None) -> EvalAnswers:
    n = len(rewards)
    return EvalAnswers(
        rewards=rewards, tokens=list(range(1, n + 1)), truncated=[False] * (n - 1) + [True], votes=votes or []
    )


@pytest.mark.parametrize(("n", "c", "k"), [(8, 3, 1), (8, 3, 4), (8, 0, 8), (8, 8, 1), (6, 1, 6), (7, 2, 5)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers_that_have_a_right_one(
    n: int, c: int, k: int
) -> None:
    rewards = [1.0] * c + [0.5] * (n - c)
    random.Random(1).shuffle(rewards)
    chosen = list(itertools.combinations(rewards, k))
    share = Fraction(sum(1.0 in some for some in chosen), len(chosen))
    assert pass_at_k(rewards, k, 1.0) == pytest.approx(float(share), abs=1e-15)
    assert pass_at_k(rewards, k, 0.5) == 1.0, "the threshold itself is right"


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all outcomes of n answers, each right with chance p, is 1 - (1 - p)^k."""
    n, k, p = 6, 3, 0.3
    mean = sum(
        p ** sum(right) * (1 - p) ** (n - sum(right)) * pass_at_k(list(map(float, right)), k, 1.0)
        for right in itertools.product((0, 1), repeat=n)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(
    ("votes", "rewards", "value"),
    [
        (["7", "8", "7"], [1.0, 0.0, 1.0], 1.0),
        (["8", "8", "7"], [0.0, 0.0, 1.0], 0.0),
        (["8", "7"], [0.0, 1.0], 0.5),  # a tie: either is as good
        ([None, None, "7"], [0.0, 0.0, 1.0], 1.0),  # no answer has no vote
        ([None, None], [1.0, 1.0], 0.0),
        (["7", "7", "8"], [1.0, 0.5, 0.0], 0.75),  # a style reward beside the answer
    ],
)
def test_the_majority_decides(votes: list[str | None], rewards: list[float], value: float) -> None:
    assert majority(rewards, votes) == value


def test_an_interval_is_that_of_the_mean_over_prompts() -> None:
    values = [0.0, 0.25, 1.0, 0.5, 0.75, 0.25]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert half_width(values) == pytest.approx(1.959964 * error, rel=1e-6)
    assert half_width([0.5]) is None


def test_values_that_are_all_the_same_have_no_interval() -> None:
    """A width of 0 would say that the figure of all prompts is known for sure."""
    assert half_width([0.1 + 0.2] * 7) is None
    found = figures([answers([1.0, 0.0])] * 5, Scale(samples=2, k=(1, 2)))
    assert (found["pass@2"], [name for name in found if name.endswith("_ci")]) == (1.0, [])


def test_answers_to_the_same_prompt_do_not_narrow_the_interval() -> None:
    """Eight equal answers to each prompt say no more of the prompts than one."""
    one = figures([answers([r]) for r in (0.0, 1.0, 1.0)], Scale())
    eight = figures([answers([r] * 8) for r in (0.0, 1.0, 1.0)], Scale(samples=8))
    assert one["reward_ci"] == eight["reward_ci"]


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(3)
    covered = 0
    for _ in range(400):
        chances = [draw.random() for _ in range(60)]  # of a right answer, by prompt; 0.5 on average
        made = [answers([float(draw.random() < chance) for _ in range(4)]) for chance in chances]
        found = figures(made, Scale(samples=4))
        covered += abs(found["reward"] - 0.5) <= found["reward_ci"]
    assert 0.92 < covered / 400 < 0.98


def test_a_set_has_the_figures_of_its_scale() -> None:
    made = [answers([1.0, 0.0], ["7", "8"]), answers([0.0, 0.5], ["1", "1"])]
    scale = Scale(samples=2, k=(1, 2), votes=True)
    found = figures(made, scale)
    assert scale.names() == ("reward", "pass@1", "pass@2", "best@2", "maj@2")
    assert {name for name in found if not name.endswith("_ci")} == {
        *scale.names(),
        "response_length",
        "truncated",
    }
    assert [found[name] for name in scale.names()] == [0.375, 0.25, 0.5, 0.75, 0.375]
    assert (found["response_length"], found["truncated"]) == (1.5, 0.5)
    assert set(figures(made[:1], Scale())) == {"reward", "response_length", "truncated"}, (
        "one prompt has no interval"
    )
