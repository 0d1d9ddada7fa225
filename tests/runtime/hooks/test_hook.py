"""A hook's fault is told with hook, place and value, and never ends the process that calls it."""

from __future__ import annotations

import asyncio
import logging
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.runtime.hooks import functions
from verst.runtime.data.curriculum import weights_of
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import advantages_of, finite_number, keep_or_drop, token_weights_of

HERE = "tests.runtime.hooks.functions"
FILE = functions.__file__


def hook(name: str, **options: Any) -> Hook:
    return Hook("group filter", f"{HERE}:{name}", **options)


def call(name: str, label: Any = 2, check: Any = finite_number, **options: Any) -> Any:
    return asyncio.run(hook(name, **options)("group 3", Answer(text="abc", label=label), check=check))


def failure(name: str, label: Any = 2, check: Any = finite_number, **options: Any) -> HookError:
    with pytest.raises(HookError) as caught:
        call(name, label, check, **options)
    assert str(caught.value).startswith(f"group filter '{HERE}:{name}', group 3: ")
    return caught.value


@pytest.mark.parametrize(("name", "value"), [("length", 1.5), ("async_length", 1.5), ("scorer", 3.0)])
def test_plain_functions_async_ones_and_objects_are_called(name: str, value: float) -> None:
    assert call(name) == value


FAULTS = {
    "raise": "raised KeyError: 'oracle' (FILE:LINE, in _raise)",
    "exit": "called sys.exit(3) (FILE:LINE, in <lambda>)",
    "stop": "raised StopIteration: enough (FILE:LINE, in _stop)",
    "deep": "raised JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    " (FILE:LINE, in _deep)",
    "none": "returned None, not a finite number",
    "nan": "returned nan, not a finite number",
    "huge": "returned an integer of about 401 digits, too large for a float",
    "text": "returned '0.5', not a finite number",
}


@pytest.mark.parametrize("label", FAULTS)
@pytest.mark.parametrize("in_thread", [True, False])
def test_a_fault_names_hook_place_value_and_the_users_line(label: str, in_thread: bool) -> None:
    error = failure("by_label", label, in_thread=in_thread)
    said = re.sub(r":\d+, in", ":LINE, in", str(error)).partition("group 3: ")[2]
    assert said == FAULTS[label].replace("FILE", FILE)


def test_the_log_has_the_users_frames_and_not_ours(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = failure("by_label", "raise")
    assert error.frames in caplog.text
    frames = re.findall(r'File "(.+)", line', error.frames)
    assert frames == [FILE, FILE]
    assert "raise KeyError" in error.frames


def test_a_hook_has_a_deadline_and_says_where_it_waited() -> None:
    error = failure("by_label_async", "wait", timeout_s=0.1)
    assert re.search(r"no value after 0.1 s \(.*functions.py:\d+, in by_label_async\)", str(error))
    assert error.kind == "late"


def test_a_call_that_is_cancelled_is_no_fault_of_the_hook() -> None:
    async def cancel() -> None:
        task = asyncio.create_task(
            hook("by_label_async")("group 3", Answer(text="", label="wait"), check=finite_number)
        )
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


async def of_the_engine(how: str) -> None:
    if how == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(of_the_engine("alone"))
    raise ConnectionError("the engine is gone")


@pytest.mark.parametrize("how", ["alone", "group"])
def test_errors_of_others_pass_unchanged(how: str) -> None:
    passing = Hook("generate function", f"{__name__}:of_the_engine", passes=ConnectionError)
    with pytest.raises(ConnectionError, match="the engine is gone"):
        asyncio.run(passing("sample 0", how, check=finite_number))


def test_a_filter_returns_true_or_false() -> None:
    for right, value in ((True, True), (np.bool_(False), False), (np.True_, True)):
        assert call("by_label", right, keep_or_drop) == (value, "filter")
    assert keep_or_drop((np.False_, "too_easy")) == (False, "too_easy")
    for wrong, message in (
        ((False, "too easy"), "a reason is a short name: letters, digits"),
        ((False, "stale"), "Verst counts its own drops under 'stale': use another word"),
        ((False, 3), "a reason is a short name"),
        ((None, "too_easy"), "neither True nor False"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            keep_or_drop(wrong)
    for wrong in ("none", 1, "yes", 0.0):
        assert "neither True nor False" in str(failure("by_label", wrong, keep_or_drop))


def test_advantages_are_as_many_finite_numbers_as_rewards() -> None:
    first, second = SimpleNamespace(id=3, rewards=[1.0, 0.0]), SimpleNamespace(id=7, rewards=[1.0])
    check = advantages_of([first, second])
    for right in ([0.5, -0.5], (0.5, -0.5), np.array([0.5, -0.5], np.float32)):
        assert check([right, [0.25]]) == [[0.5, -0.5], [0.25]]
    for wrong, message in (
        ([[0.5], [0.5]], "returned 1 value for the 2 rewards of group 3: [0.5]"),
        ([[0.5, 0.5], [0.5, 0.5]], "returned 2 values for the 1 rewards of group 7: [0.5, 0.5]"),
        (
            [[0.5, float("nan")], [0.5]],
            "returned nan, not a finite number, at place 1 of group 3; the rewards are [1.0, 0.0]",
        ),
        (
            [[0.5, 1e39], [0.5]],
            "returned 1e+39, too large for float32, in which training computes, at place 1",
        ),
        (
            [0.5, 0.5],
            "returned 0.5 for group 3, not a list of 2 numbers, one for each sample; `verst.runtime.",
        ),
        ([[0.5, 0.5]], "returned 1 value for 2 groups"),
        (0.5, "returned 0.5, not a list of 2 lists, one for each group"),
        (None, "returned None, not a list of 2 lists"),
        ([[0.5, "x"], [0.5]], "returned 'x', not a finite number, at place 1"),
        ([[[1.0], [2.0]], [0.5]], "returned [1.0], not a finite number, at place 0 of group 3"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            check(wrong)


def test_weights_of_tokens_add_up_to_one_or_less_over_all_trained_tokens() -> None:
    first = SimpleNamespace(id=3, rewards=[1.0, 0.0], trained_tokens=[4, 0])
    second = SimpleNamespace(id=7, rewards=[1.0], trained_tokens=[6])
    check = token_weights_of([first, second])
    for right in ([[0.1, 5.0], [0.1]], [[0.0, 0.0], [1 / 6]], [[1e-6, 0.0], [0.0]]):
        assert check(right) == right
    assert check(np.array([[np.float32(0.1)] * 2, [np.float32(0.1)]], dtype=object))[1] == [
        pytest.approx(0.1)
    ]
    for wrong, message in (
        ([[0.1, 0.1], [0.11]], "add up to 1.06 over all trained tokens; they must add up to 1 or less"),
        ([[0.5, 0.0], [0.5]], "add up to 5 over all trained tokens"),
        (
            [[0.0, 1.0], [0.0]],
            "add up to 0 over all trained tokens; they must add up to 1 or less, and to more",
        ),
        ([[0.3, 0.0], [-0.1]], "returned -0.1, below 0, at place 0 of group 7"),
        ([[float("inf"), 0.0], [0.0]], "returned inf, not a finite number, at place 0 of group 3"),
        ([0.1, 0.1], "returned 0.1 for group 3, not a list of 2 numbers, one for each sample"),
        ([[0.1], [0.1]], "returned 1 value for the 2 rewards of group 3"),
        ([[0.1, 0.1]], "returned 1 value for 2 groups"),
        (None, "returned None, not a list of 2 lists"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)) as raised:
            check(wrong)
        assert "per_group" not in str(raised.value)


class Sealed:
    """A value that raises when it is looked at, as a tensor does that has a gradient or is on a GPU."""

    def tolist(self) -> list[float]:
        raise RuntimeError("not from here")

    def __array__(self, *how: Any, **more: Any) -> np.ndarray:
        raise RuntimeError("not from here")


def sealed(groups: Any) -> Any:
    return Sealed()


@pytest.mark.parametrize("check", [advantages_of([]), weights_of(3)])
def test_a_value_that_cannot_be_looked_at_is_the_hooks_fault(check: Any) -> None:
    hook = Hook("advantage function", f"{__name__}:sealed")
    with pytest.raises(HookError, match=r"step 3: returned .*, which cannot be looked at: it raised Runtime"):
        asyncio.run(hook("step 3", [], check=check))


def test_numpys_numbers_are_numbers() -> None:
    assert call("by_label", "bool") == 1.0
    assert call("by_label", "float32") == 0.25


def test_a_module_that_cannot_be_imported_is_told_with_its_line(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for source, message in (
        ("x = 1\nimport not_installed\n", "raised ModuleNotFoundError: No module named 'not_installed'"),
        ("import sys\nsys.exit('no licence')\n", "called sys.exit('no licence')"),
    ):
        (tmp_path / "of_a_user.py").write_text(source)
        with pytest.raises(HookError) as caught:
            Hook("advantage function", "of_a_user:f")
        assert str(caught.value) == (
            f"advantage function 'of_a_user:f': importing it failed: {message} ({tmp_path}/of_a_user.py:2, in <module>)"
        )
        assert caught.value.kind == "load"


def test_where_nothing_can_be_awaited_an_async_hook_is_refused() -> None:
    with pytest.raises(HookError, match="step 4: is async: here it must be a plain function"):
        hook("async_length").call_now("step 4", Answer(text="abc", label=2), check=finite_number)
    with pytest.raises(HookError, match=r"step 4: called sys.exit\(3\)"):
        hook("by_label").call_now("step 4", Answer(text="abc", label="exit"), check=finite_number)
