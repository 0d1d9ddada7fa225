"""When an evaluation is due, that failures count within one, and what late answers do."""

from __future__ import annotations

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import Evaluations


def test_is_due_before_and_after_and_at_intervals_once_each():
    evaluations = Evaluations(prompts=1, interval=2, first=3, last=8, done=[5])
    assert [v for v in range(3, 9) if evaluations.due(v)] == [3, 7, 8]
    evaluations.begin(3)
    assert evaluations.take(9) == [0]
    assert evaluations.scored(0, 1.0) == ev.ReportEval(3, "before", 1.0, 1)
    assert not evaluations.due(3)
    assert not any(Evaluations(prompts=0, interval=1, first=3, last=8).due(v) for v in range(9))


def test_failures_count_within_an_evaluation_and_come_last():
    evaluations = Evaluations(prompts=3, interval=1, first=0, last=9)
    for version in range(3):
        evaluations.begin(version)
        assert [evaluations.runs(v) for v in (version - 1, version, None)] == [False, True, False]
        assert evaluations.take(2) == [0, 1]
        assert [evaluations.failed(0), evaluations.failed(0)] == [1, 2], "those of earlier ones are forgotten"
        evaluations.take(9)
        evaluations.requeue([0, 1, 2])
        assert evaluations.take(9) == [1, 2, 0]
        reports = [evaluations.scored(id, id / 2) for id in (0, 1, 1, 2)]
        when = "before" if version == 0 else "during"
        assert reports == [None, None, None, ev.ReportEval(version, when, 0.5, 3)]
    assert not evaluations.running
    assert not evaluations.runs(2), "late: none is running"
