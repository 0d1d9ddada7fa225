"""When a set is evaluated, that failures count within an evaluation, and what late answers do."""

from __future__ import annotations

from verst.runtime.algorithms.evaluation import Scale
from verst.runtime.controller.state_machine.evaluations import EvalSet, Evaluations
from verst.runtime.messages.jobs import EvalAnswers


def answers(reward: float) -> EvalAnswers:
    return EvalAnswers(rewards=[reward], tokens=[5], truncated=[False])


def test_is_due_before_and_after_and_at_intervals_once_each():
    evaluations = Evaluations([EvalSet("math", 1, interval=2)], first=3, last=8, done={5: ["math"]})
    assert [v for v in range(9) if evaluations.due(v)] == [3, 7, 8]
    evaluations.begin(3)
    assert not evaluations.due(3)
    assert evaluations.take(9) == ([0], 1)
    report = evaluations.scored(0, answers(1.0))
    assert (report.version, report.when, report.set, report.prompts) == (3, "before", "math", 1)
    assert report.figures == {"reward": 1.0, "response_length": 5.0, "truncated": 0.0}
    assert not evaluations.due(3)
    assert not any(Evaluations([], first=3, last=8).due(v) for v in range(9))


def test_sets_have_intervals_of_their_own_and_are_reported_one_by_one():
    sets = [EvalSet("math", 2, 1), EvalSet("code", 1, 2, Scale(samples=8)), EvalSet("chat", 1)]
    evaluations = Evaluations(sets, first=0, last=5)
    made = []
    for version in range(6):
        evaluations.begin(version)
        while evaluations.waiting:
            samples = evaluations.samples_of_next()
            ids, _ = evaluations.take(4)
            assert {evaluations.place(id)[0].scale.samples for id in ids} == {samples}
            reports = [evaluations.scored(id, answers(id / 10)) for id in reversed(ids)]
            made += [(report.version, report.set) for report in reports if report]
    assert made == [
        (0, "math"), (0, "code"), (0, "chat"), (1, "math"), (2, "math"), (2, "code"), (3, "math"), (4, "math"),
        (4, "code"), (5, "math"), (5, "code"), (5, "chat"),
    ]  # fmt: skip
    assert [evaluations.place(id)[1] for id in range(4)] == [0, 1, 0, 0]


def test_an_early_end_evaluates_the_sets_that_its_last_version_lacks():
    evaluations = Evaluations([EvalSet("math", 1, 1), EvalSet("code", 1)], first=0, last=9)
    evaluations.begin(4)
    evaluations.scored(0, answers(1.0))
    assert not evaluations.running
    assert not evaluations.due(4)
    evaluations.stop_at(4)
    assert evaluations.due(4)
    evaluations.begin(4)
    assert evaluations.progress == (0, 1)
    assert evaluations.place(evaluations.take(9)[0][0])[0].name == "code"
    assert evaluations.moment() == "after"


def test_failures_count_within_an_evaluation_and_come_last():
    evaluations = Evaluations([EvalSet("math", 3, interval=1)], first=0, last=9)
    for version in range(3):
        evaluations.begin(version)
        assert [evaluations.runs(v) for v in (version - 1, version, None)] == [False, True, False]
        assert evaluations.take(2) == ([0, 1], 1)
        assert [evaluations.failed(0), evaluations.failed(0)] == [1, 2], "those of earlier ones are forgotten"
        evaluations.take(9)
        evaluations.requeue([0, 1, 2])
        assert evaluations.take(9) == ([1, 2, 0], 1)
        reports = [evaluations.scored(id, answers(id / 2)) for id in (0, 1, 1, 2)]
        assert reports[:3] == [None] * 3
        assert (reports[3].when, reports[3].figures["reward"]) == (
            "before" if version == 0 else "during",
            0.5,
        )
    assert not evaluations.running
    assert not evaluations.runs(2), "late: none is running"
