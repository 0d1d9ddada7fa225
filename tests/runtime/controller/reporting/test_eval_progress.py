"""An evaluation says how far it is, in at most fifty lines however many prompts it has."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.runtime.controller.reporting.test_numbers import SETTINGS
from verst.runtime.controller.reporting.measure import RolloutMeasure, StepRecord
from verst.runtime.controller.reporting.reporting import Reporting
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.loop_state import LoopState, SavedState
from verst.runtime.messages.jobs import EvalAnswers
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.trace import NO_TRACE
from verst.runtime.run.folder import RunFolder


@pytest.mark.parametrize(("prompts", "told"), [(4, [1, 2, 3]), (150, [*range(3, 150, 3)])])
def test_its_progress_is_told_and_its_end_is_not(tmp_path, prompts, told):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    saved = SavedState(version=20, trained_below=0, trained_above=[], evaluated={})
    state = LoopState(dataclasses.replace(SETTINGS, evals=(EvalSet("math", prompts),)), saved)
    reporting = Reporting(
        folder, MetricsConfig(), state, StepRecord(RolloutMeasure(), NO_TRACE), NO_TRACE, {}
    )
    state.evals.begin(20)
    answers = EvalAnswers(rewards=[1.0], tokens=[5], truncated=[False])
    reporting.evaluating(20)
    reporting.evaluating(20)
    reporting.note(ev.EvalScored(0, answers, 10))  # too late for its evaluation, and not told
    for id in range(prompts):
        reporting.note(ev.EvalScored(id, answers, 20))
        state.evals.scored(id, answers)
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"eval_progress"}
    assert [line["done"] for line in lines] == [0, *told]
    assert {(line["step"], line["of"]) for line in lines} == {(20, prompts)}
    assert len(lines) <= 51
