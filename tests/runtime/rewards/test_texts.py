"""Rewards that compare texts, against the definitions that they cite."""

from __future__ import annotations

import re
import time
from math import cos, pi
from typing import Any

import numpy as np
import pytest

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.preparation import argument_fault
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.choice import choice
from verst.runtime.rewards.dapo import dapo_math, normalised, overlong
from verst.runtime.rewards.final import finished_thought, last_boxed
from verst.runtime.rewards.form import format
from verst.runtime.rewards.lengths import cosine, relative_length
from verst.runtime.rewards.squad import exact_match, f1


def answer(text: str, label: Any = None, tokens: int = 0, **more: Any) -> Answer:
    return Answer(text=text, label=label, ids=[1] * tokens, **more)


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{7}", "7"), (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), (r"\boxed{1} \boxed{2", None),
        (r"\boxed{}", ""), ("no box", None), (r"\fbox{3}", "3"), (r"\boxed{a} }", "a"),
    ],
)  # fmt: skip
def test_the_last_box_counts(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


def test_a_thought_that_never_ended_has_no_answer() -> None:
    assert finished_thought("<think>7") is None
    assert finished_thought("<think>a</think>b</think> 7") == " 7"


@pytest.mark.parametrize(
    ("text", "label", "reward"),
    [
        ("So.\nAnswer: 42", "42", 1), ("answer : $42$", "42", 1), ("Answer: 41\nAnswer: 42", "42", 1),
        ("Answer: 42\nAnswer: 41", "42", -1), ("42", "42", -1), ("Answer: x = 42", "42", 1),
        ("Answer: 1,234", "1234", 1),
        (r"Answer: $\frac12$", r"\frac{1}{2}", 1), (r"Answer: \boxed{5}", "5", 1), ("Answer: 5 degrees", "5", 1),
        (r"Answer: 5^\circ", "5", 1), (r"Answer: \text{5}", 5, 1), (r"Answer: \sqrt3", r"\sqrt{3}", 1),
        ("Answer: 42" + " " * 300, "42", -1), ("Answer: 0.5", r"\frac{1}{2}", -1), ("Answer: 12", r"$\boxed{12}$", 1),
    ],
)  # fmt: skip
def test_dapo_compares_what_follows_answer(text: str, label: Any, reward: float) -> None:
    assert dapo_math(answer(text, label)) == reward


@pytest.mark.parametrize(
    ("written", "form"),
    [
        # Pairs as the normalisation of Minerva makes them.
        (r"\frac12", r"\frac{1}{2}"), (r"\frac1b", r"\frac{1}{b}"), (r"\sqrt{2}", r"\sqrt{2}"), ("a = b = 3 cm", "3"),
        (r"the value $x+1$ holds", "x+1"), (r"1{,}000", "1000"), (r"\text{ Monday }", "Monday"),
        (r"\mbox{even}", "even"), (r"\overline{AB}", "AB"), (r"\textbf{9}", "9"), ("1,2,3", "123"), ("(1,2)", "(1,2)"),
        (r"10\%", r"10\%"), (r"\$5", "5"), ("12 integers", "12"), (r"3^{\circ}", "3"),
    ],
)  # fmt: skip
def test_the_normalisation_of_minerva(written: str, form: str) -> None:
    assert normalised(written) == form


@pytest.mark.parametrize("label", [None, "", " ", True, ["4"], "cm"])
def test_dapo_refuses_labels_without_a_value(label: Any) -> None:
    with pytest.raises(LabelError, match="label"):
        dapo_math(answer("Answer: 4", label))


def test_overlong_answers_are_punished_as_in_equation_13_of_dapo() -> None:
    longest, cached = 20480, 4096

    def equation_13(length: int) -> float:
        if length <= longest - cached:
            return 0.0
        return ((longest - cached) - length) / cached if length <= longest else -1.0

    for length in (0, 16383, 16384, 16385, 18432, 20479, 20480, 20481, 30000):
        found = overlong(answer("", tokens=length), limit=longest, buffer=cached)
        assert found == pytest.approx(equation_13(length), abs=1e-12)


def test_the_cosine_reward_prefers_brief_right_and_long_wrong_answers() -> None:
    def value(length: int, text: str) -> float:
        return cosine(answer(text, "7", length), limit=100, reward="verst.runtime.rewards.squad:exact_match")

    for length in (0, 1, 25, 50, 99):
        share = (1 + cos(pi * length / 100)) / 2
        assert value(length, "7") == pytest.approx(1 + share)
        assert value(length, "8") == pytest.approx(-10 * share)
    assert value(100, "7") == -10
    cut = answer("7", "7", 5, finish="length")
    assert cosine(cut, limit=100, reward="verst.runtime.rewards.squad:exact_match") == -10


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is C.", "C"), ("Answer: (B)", "B"), (r"\boxed{D}", "D"), (r"\boxed{\text{(A)}}", "A"),
        ("**Answer:** C", "C"), ("A is wrong.\nThe correct answer is **B**", "B"), ("I think\nD", "D"), ("(D)", "D"),
        ("answer is A, no: answer is B", "B"), ("<think>Answer: A</think>Answer: B", "B"), ("Answer: $C$", "C"),
        (r"Answer: A, so \boxed{B}", "B"), (r"Answer: A, \boxed{7}", ""), ("The answer is Cats", ""),
        ("A cat", ""), ("", ""), ("answer is a", ""), ("A and B", ""), ("correct choice is E", "E"),
    ],
)  # fmt: skip
def test_the_letter_of_a_choice(text: str, letter: str) -> None:
    for label in "ABCDE":
        assert choice(answer(text, label)) == float(label == letter), label
    assert choice(answer(text, "(c)")) == float(letter == "C")


@pytest.mark.parametrize("label", [None, "AB", 3, "", "5"])
def test_a_choice_needs_a_letter(label: Any) -> None:
    with pytest.raises(
        LabelError, match=re.escape(f"the label {label!r} is no letter of a choice, such as C")
    ):
        choice(answer("A", label))


@pytest.mark.parametrize(
    ("text", "label", "exact", "harmonic"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1), ("Paris, France", ["Paris", "paris france"], 1, 1),
        ("the city of Paris", "Paris", 0, 2 * (1 / 3) * 1 / (1 / 3 + 1)), ("Rome", "Paris", 0, 0), ("", "Paris", 0, 0),
        ("a b b c", "b b d", 0, 2 * 2 / 3 * 2 / 3 / (2 / 3 + 2 / 3)), ("an apple", "apple", 1, 1), (" 7.", 7, 1, 1),
        ("<think>Rome</think>I say <answer> Paris </answer>.", "paris", 1, 1), ("theatre", "atre", 0, 0),
    ],
)  # fmt: skip
def test_exact_match_and_f1_are_those_of_squad(text: str, label: Any, exact: float, harmonic: float) -> None:
    """The harmonic mean of precision and recall over words, worked out by hand ("a" is an article)."""
    assert exact_match(answer(text, label)) == exact
    assert f1(answer(text, label)) == pytest.approx(harmonic)


@pytest.mark.parametrize("label", [None, "", [], ["", "a"], [None], True, {"a": 1}])
def test_squad_labels_are_texts(label: Any) -> None:
    for reward in (exact_match, f1):
        with pytest.raises(LabelError, match="label"):
            reward(answer("a", label))


def test_the_form_of_a_whole_response() -> None:
    scored = format(answer("<think>so</think> 7"))
    assert (scored.value, scored.parts) == (1.0, {"thought": 1.0, "answer": 1.0})
    for text in ("7", "<think>so 7", "</think>", "<think>so</think>  "):
        assert (format(answer(text)).value, format(answer(text)).parts["answer"]) == (0.0, 0.0)
    optional = format(answer("x"), pattern="(?P<a>x)(?P<b>y)?")
    assert (optional.value, optional.parts) == (1.0, {"a": 1.0, "b": 0.0})
    assert format(answer("ab\ncd"), pattern="ab.cd").value == 1


def test_hostile_texts_take_no_time() -> None:
    began = time.monotonic()
    for text in (
        "Answer:" * 50_000,
        r"\boxed{" * 50_000,
        "answer is " * 50_000,
        "\n" * 500_000,
        "$" * 300_000,
        "answer" + " " * 1990,
        "Answer:" + " " * 290,
        "answer is" + "\t" * 1900 + "x",
        "answer:" * 40 + " " * 1700,
        "\\boxed{\\text{" + " " * 5000,
    ):
        dapo_math(answer(text, "7")), choice(answer(text, "A")), f1(answer(text, "b")), format(answer(text))
    assert format(answer("a" * 5000 + "b"), pattern="(a|aa|a+)+c").value == 0
    assert time.monotonic() - began < 10


def test_the_length_reward_is_kimis_formula() -> None:
    """Section 2.3.3 of arXiv:2501.12599, answer by answer."""
    random = np.random.default_rng(0)
    for weight in (1.0, 0.3):
        lengths, values = (
            random.integers(1, 200, 8).tolist(),
            random.choice([-1.0, 0.0, 0.4, 1.0], 8).tolist(),
        )
        answers = [
            Answer(text="", ids=[0] * n, score=Score(value, {"right": value}))
            for n, value in zip(lengths, values, strict=True)
        ]
        scores = relative_length(answers, weight=weight)
        for n, value, score in zip(lengths, values, scores, strict=True):
            lam = 0.5 - (n - min(lengths)) / (max(lengths) - min(lengths))
            bonus = lam if value > 0 else min(0, lam)
            assert score.value == pytest.approx(value + weight * bonus)
            assert score.parts == {"length": pytest.approx(bonus)}
    same = [Answer(text="", ids=[0] * 5, score=Score(v)) for v in (1.0, 0.0)]
    assert [score.value for score in relative_length(same)] == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"shapes what rollout\.reward gives, and there is none"):
        relative_length([Answer(text="", ids=[0])])


def test_the_weight_of_the_length_reward_is_checked() -> None:
    assert argument_fault(relative_length, {"weight": 0.5}) is None
    assert "weight must be above 0; it is 0" in str(argument_fault(relative_length, {"weight": 0}))
    assert "weight is 'much'" in str(argument_fault(relative_length, {"weight": "much"}))
    assert "factor" in str(argument_fault(relative_length, {"factor": 1.0}))
