"""An evaluation without training answers every prompt once, whatever engines do, and ends."""

from __future__ import annotations

import random

import pytest

from tests.runtime.controller.state_machine.test_machine import answers
from verst.runtime.algorithms.evaluation import Scale
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.lone_evaluation import LoneEvaluation

SETS = [EvalSet("math", 7, scale=Scale(samples=4)), EvalSet("code", 3)]


@pytest.mark.parametrize("seed", range(20))
def test_every_set_is_reported_once_though_engines_are_lost(seed: int) -> None:
    state, draw = LoneEvaluation(SETS, concurrency=8), random.Random(seed)
    working: dict[int, list[int]] = {}
    reported: list[tuple[str, int]] = []
    for _ in range(2000):
        engine = draw.randrange(3)
        if engine not in working:
            working[engine] = []
            event: ev.Event = ev.EngineReady(engine)
        elif draw.random() < 0.05:
            del working[engine]
            event = ev.EngineLost(engine, "power")
        elif working[engine] and draw.random() < 0.5:
            event = ev.EvalScored(working[engine].pop(), answers(), 0)
        else:
            event = ev.PromptsWanted(engine, 8 - sum(4 if id < 7 else 1 for id in working[engine]))
        for command in state.handle(event):
            match command:
                case ev.SendPrompts(engine, ids, evaluation, version):
                    assert (evaluation, version) == (True, 0)
                    working[engine] += ids
                case ev.ReportEval(_, _, name, _, prompts):
                    reported.append((name, prompts))
                case ev.Finish():
                    assert command.ok
                    assert sorted(reported) == [("code", 3), ("math", 7)]
                    return
    raise AssertionError("it did not end")


def test_a_prompt_that_cannot_be_answered_ends_it() -> None:
    state = LoneEvaluation(SETS, concurrency=8)
    state.handle(ev.EngineReady(0))
    state.handle(ev.PromptsWanted(0, 8))
    failed = ev.GroupFailed(8, True, "HTTP 500", fatal=False, version=0)
    for _ in range(2):
        assert all(isinstance(c, ev.SendPrompts) for c in state.handle(failed))
    assert state.handle(failed) == [
        ev.Finish(False, "evaluation prompt 1 of code failed 3 times, last: HTTP 500")
    ]
    fatal = ev.GroupFailed(0, True, "the reward raised", fatal=True, version=0)
    assert LoneEvaluation(SETS, concurrency=8).handle(fatal) == [
        ev.Finish(False, "evaluation prompt 0 of math: the reward raised", hopeless=True)
    ]
