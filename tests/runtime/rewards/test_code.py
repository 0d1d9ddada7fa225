# ruff: noqa: E501
"""Programs are scored by tests in the sandbox: right ones pass, and none passes by a trick."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.preparation import argument_fault
from verst.runtime.rewards.code import cases_of, code, program_of

DOUBLE = "n = int(input())\nprint(2 * n)"
STDIN = [{"input": "3\n", "output": "6\n", "testtype": "stdin"}, {"input": "-1", "output": "-2"}]
APPS = {"inputs": ["3\n", "-1"], "outputs": ["6\n", "-2"]}
CALLS = {"inputs": [[3], [[1, 2]]], "outputs": [6, [1, 2, 1, 2]], "fn_name": "double"}
LIVE = [{"input": "3", "output": "6", "testtype": "functional"}, {"input": "[1, 2]", "output": "[1, 2, 1, 2]", "testtype": "functional"}]  # fmt: skip
ASSERTS = [
    "assert double(3) == 6",
    "assert double([1, 2]) == [1, 2, 1, 2]",
    "assert set(double((1,))) == {1}",
]
FUNCTION = "def double(n):\n    return n * 2"
CLASS = "class Solution:\n    def double(self, n):\n        return n + n"


def scored(
    program: str, label: Any, metadata: dict[str, Any] | None = None, **arguments: Any
) -> tuple[float, float]:
    text = f"<think>```python\nprint(0)\n```</think>So:\n```python\n{program}\n```\nDone."
    score = code(Answer(text=text, label=label, metadata=metadata or {}), **({"seconds": 20.0} | arguments))
    return score.value, score.parts["passed"]


@pytest.mark.parametrize(
    ("program", "label", "metadata"),
    [
        (DOUBLE, STDIN, {}), (DOUBLE, json.dumps(APPS), {}), (FUNCTION, CALLS, {}), (CLASS, CALLS, {}),
        (FUNCTION, json.dumps(LIVE), {"func_name": "double"}), (CLASS, LIVE, {"metadata": '{"func_name": "double"}'}),
        (FUNCTION, ASSERTS, {}), ("print(1 / 3)", [{"input": "", "output": "0.33333333333"}], {}),
        ("def f(): return (1, (2, None))", {"inputs": [[]], "outputs": [[1, [2, None]]], "fn_name": "f"}, {}),
        ("def f(x): return x", ["import math\nassert math.isclose(f(1.5), 1.5)"], {}),
        ("print('a  \\nb\\n')", [{"input": "", "output": "a\nb"}], {}),
        ("if __name__ == '__main__': print(open(0).read())", [{"input": "x", "output": "x"}], {}),
    ],
)  # fmt: skip
def test_right_programs_pass(program: str, label: Any, metadata: dict[str, Any]) -> None:
    assert scored(program, label, metadata) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("program", "label"),
    [
        ("print(6)", STDIN[1:]), ("n = 1 / 0", STDIN), ("x = = 1", STDIN), ("print(6); exit(1)", STDIN[:1]),
        ("import os; print(6, flush=True); os._exit(1)", STDIN[:1]), ("print('6 6')", STDIN[:1]), ("", STDIN),
        ("print(0.34)", [{"input": "", "output": "0.33333"}]), ("print(10**17 + 1)", [{"input": "", "output": "100000000000000000"}]),
        # Tricks: to end before the test, to be equal to everything, to print something else, to look for the tests.
        ("import os; os._exit(0)", CALLS), ("import sys; sys.exit(0)", ASSERTS), ("exit(0)", ["assert f(1) > 0"]),
        ("class A:\n    def __eq__(self, o): return True\n    def __repr__(self): return 'A()'\ndef double(n): return A()", ASSERTS),
        ("import builtins\nbuiltins.repr = lambda x: '6'\nrepr = lambda x: '6'\ndouble = 7", CALLS),
        ("import atexit; atexit.register(lambda: print(6))\ndef double(n): return 1", CALLS),
        ("import sys, gc\ndef double(n): return 7 if '6' not in open('main.py').read()[-80:] else 6", CALLS),
        ("while True: pass", STDIN),
    ],
)  # fmt: skip
def test_wrong_programs_and_tricks_fail(program: str, label: Any) -> None:
    assert scored(program, label, seconds=2.0 if "while" in program else 20.0) == (0.0, 0.0)


def test_the_share_of_cases_and_their_number() -> None:
    label = [{"input": str(n), "output": "6"} for n in (3, 3, 4)]
    assert scored(DOUBLE, label) == (0.0, pytest.approx(2 / 3))
    assert scored(DOUBLE, label[::-1]) == (0.0, 0.0), "it stops at the first that fails"
    assert scored(DOUBLE, label[::-1], share=True) == (pytest.approx(2 / 3),) * 2
    assert scored(DOUBLE, label, most_cases=2) == (1.0, 1.0)
    assert scored("import time; time.sleep(0.3); print(6)", label, total_seconds=0.2)[1] == pytest.approx(
        1 / 3
    )


def test_the_program_of_a_response() -> None:
    assert program_of("```python\na\n```\n```py\nb\n```\n```text\nc\n```") == "b\n"
    assert program_of("```\na\n```") == "a\n"
    assert program_of("```python\na\n```</think>none") is None
    assert program_of("see ```a``` and\n```python\nb\n```") is None, "the first fence takes the line"
    assert program_of("```python\na\n``` ```\nb\n```\n```python\nc") == "b\n"
    assert code(Answer(text="none", label=STDIN)).value == 0


def test_a_model_that_repeats_a_fence_does_not_hold_up_the_rewards() -> None:
    """The time was once quadratic in the text's length: a minute for 100,000 characters."""
    for text in ("`" * 1_000_000, "```" * 300_000 + "\n", ("```" + "a" * 100) * 10_000):
        began = time.process_time()
        assert program_of(text) is None
        assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (None, "neither a list nor an object"), ([], "the list is empty"), ("x", "is no JSON"), ({"inputs": []}, "'outputs'"),
        ({"inputs": [1], "outputs": []}, "shorter"), ([{"input": "1"}], "'output'"), (["assert f("], "SyntaxError"),
        ([{"input": "1", "output": "1", "testtype": "functional"}], "needs the function's name"), ([3], "has no"),
        ({"inputs": [3], "outputs": [6], "fn_name": "f"}, "needs a list of arguments"),
    ],
)  # fmt: skip
def test_labels_without_cases_are_refused(label: Any, said: str) -> None:
    with pytest.raises(LabelError, match=said):
        cases_of(label, {})


def test_arguments_are_checked_before_anything_runs() -> None:
    assert argument_fault(code, {"require": ["network"], "seconds": 3}) is None
    assert "'internet' is none of them" in str(argument_fault(code, {"require": ["internet"]}))
    for wrong in ({"seconds": 0}, {"seconds": math.inf}, {"total_seconds": math.nan}, {"memory_mib": 1}):
        assert "must be above 0" in str(argument_fault(code, wrong))


def test_arguments_of_a_wrong_type_are_refused() -> None:
    """Memory of 1024.5 MiB once let no program start: every answer scored 0."""
    for wrong in ({"memory_mib": 1024.5}, {"most_cases": 2.5}, {"share": "no"}, {"seconds": "6"}):
        assert f"{next(iter(wrong))} is " in str(argument_fault(code, wrong))
