"""The functions of `hooks` are told what happens; a fault of one ends the run or is told, as the recipe says."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.runtime.controller.reporting.test_numbers import group
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.hooks.config import HooksConfig
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.happenings import StepEnd
from verst.runtime.run.folder import RunFolder

TOLD: list[Any] = []


def notes(happening: Any) -> str:
    TOLD.append(happening)
    return "what it returns does not matter"


async def notes_later(happening: Any) -> None:
    TOLD.append(happening)


def raises(happening: Any) -> None:
    raise OSError("the disk is full")


def hangs(happening: Any) -> None:
    time.sleep(1)


def longest(step: StepEnd) -> dict[str, float]:
    return {"longest": max(length for group in step.groups for length in group.lengths)}


def takes_a_name(step: StepEnd) -> dict[str, float]:
    return {"words": 1}


def no_number(step: StepEnd) -> dict[str, Any]:
    return {"best": None}


STEP = StepEnd(step=3, line={"kind": "step", "own": {"words": 7.0}}, groups=[group(0, [1.0, 0.0])])


def hooks(folder: RunFolder, **keys: Any) -> HappeningHooks:
    given = {k: f"{__name__}:{v}" if k not in ("timeout_s", "failure") else v for k, v in keys.items()}
    return HappeningHooks(HooksConfig(**given), folder)


@pytest.mark.parametrize("function", ["notes", "notes_later"])
def test_a_function_is_told_and_one_that_is_not_named_is_not(folder: RunFolder, function: str) -> None:
    TOLD.clear()
    told = hooks(folder, step_end=function)
    asyncio.run(told.tell("step_end", "step 3", STEP))
    asyncio.run(told.tell("run_end", "the run's end", STEP))
    assert TOLD == [STEP]


def test_an_error_ends_the_run_or_is_told_in_an_event(folder: RunFolder) -> None:
    said = r"hook step_end '.*:raises', step 3: raised OSError: the disk is full"
    with pytest.raises(HookError, match=said):
        asyncio.run(hooks(folder, step_end="raises").tell("step_end", "step 3", STEP))
    asyncio.run(hooks(folder, step_end="raises", failure="warn").tell("step_end", "step 3", STEP))
    event = json.loads(folder.events.read_text().splitlines()[-1])
    assert event["kind"] == "hook_failed"
    assert event["message"].startswith("hooks.step_end failed, and the run goes on: hook step_end")
    late = hooks(folder, step_end="hangs", timeout_s=0.1)
    with pytest.raises(HookError, match=r"no value after 0\.1 s"):
        asyncio.run(late.tell("step_end", "step 3", STEP))


def test_a_path_that_leads_nowhere_is_told_when_it_is_loaded(folder: RunFolder) -> None:
    with pytest.raises(HookError, match=r"hook run_end '.*:gone'"):
        hooks(folder, run_end="gone")


def test_own_figures_of_a_step(folder: RunFolder) -> None:
    line = asyncio.run(hooks(folder, metrics="longest").with_figures(STEP))
    assert line == {"kind": "step", "own": {"words": 7.0, "longest": max(STEP.groups[0].lengths)}}
    assert STEP.line["own"] == {"words": 7.0}, "the line that other functions get is as it was"
    for function, said in (
        ("takes_a_name", "returned a figure 'words', which the step has already"),
        ("no_number", "returned None, not a finite number, as the figure 'best'"),
        ("notes", "not a dict of numbers"),
    ):
        with pytest.raises(HookError, match=said):
            asyncio.run(hooks(folder, metrics=function).with_figures(STEP))
    warned = hooks(folder, metrics="no_number", failure="warn")
    assert asyncio.run(warned.with_figures(STEP)) == STEP.line
