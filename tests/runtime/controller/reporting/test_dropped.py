"""What people see of dropped groups: figures of each step, progress while none is kept, and an event a step."""

from __future__ import annotations

import json
from typing import Any

from verst.runtime.controller.reporting.measure import RolloutMeasure, StepRecord
from verst.runtime.controller.reporting.reporting import Reporting
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.loop_state import Settings
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import StepReport
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.sinks import figures
from verst.runtime.metrics.trace import NO_TRACE
from verst.runtime.run.folder import RunFolder

SETTINGS = Settings(
    steps=5,
    prompts_per_step=2,
    samples_per_prompt=2,
    staleness=0,
    in_order=True,
    offline_steps=0,
    checkpoint_interval=2,
    evals=(EvalSet("math", 20),),
    min_engines=1,
)
META = GroupMeta(
    id=3,
    shard=0,
    lengths=[5, 5],
    trained_tokens=[2, 2],
    rewards=[0.0, 1.0],
    finish=["stop"] * 2,
    oldest_version=0,
)


def lines(path: Any, kind: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record for record in records if record["kind"] == kind]


def test_dropped_groups_are_counted_by_reason_in_the_step_that_follows(folder: RunFolder) -> None:
    record = StepRecord(RolloutMeasure(), NO_TRACE)
    reporting = Reporting(folder, MetricsConfig(), Controller(SETTINGS), record, NO_TRACE, {"math": 0})
    for id in range(300):
        reporting.dropped(ev.ReportDropped(id, "filter", "", False))
    for id in (300, 301):
        reporting.dropped(ev.ReportDropped(id, "stale", "it is old", True))
    [first, *_] = lines(folder.metrics, "rollout_progress")
    assert (first["step"], first["done"], first["of"], first["dropped"]) == (1, 0, 2, 1)
    assert len(lines(folder.metrics, "rollout_progress")) < 5, "a line a second, not one a group"
    [event] = lines(folder.events, "group_dropped")
    assert event["message"] == "prompt group 300 is dropped (stale): it is old; its prompt is issued again"
    record.step_begins([META], version=0)
    reporting.dropped(
        ev.ReportDropped(400, "masked", "no token", False)
    )  # while the step trains: of the next
    report = StepReport(step=0, loss=1.0, grad_norm=1.0, lr=1.0, tokens=8, metrics={}, seconds={})
    line = record.step_ends(report)
    assert line["dropped"] == {"all": 302, "filter": 300, "stale": 2}
    assert line["reissued"] == 2
    found = figures(line)
    assert found is not None
    assert found[1]["dropped/filter"] == 300
    reporting.note(ev.Trained(1))
    reporting.dropped(ev.ReportDropped(401, "stale", "it is old", False))
    record.step_begins([META], version=1)
    assert record.step_ends(report)["dropped"] == {"all": 2, "masked": 1, "stale": 1}
    assert len(lines(folder.events, "group_dropped")) == 3


def test_a_long_row_of_drops_is_told(folder: RunFolder) -> None:
    record = StepRecord(RolloutMeasure(), NO_TRACE)
    reporting = Reporting(folder, MetricsConfig(), Controller(SETTINGS), record, NO_TRACE, {"math": 0})
    reporting.warn_dropped("100 prompt groups in a row were dropped")
    [event] = lines(folder.events, "groups_dropped")
    assert event["message"] == "100 prompt groups in a row were dropped"


def test_an_evaluation_says_how_many_rows_it_leaves_out(folder: RunFolder) -> None:
    record = StepRecord(RolloutMeasure(), NO_TRACE)
    reporting = Reporting(folder, MetricsConfig(), Controller(SETTINGS), record, NO_TRACE, {"math": 5})
    reporting.evaluated(ev.ReportEval(0, "before", "math", {"reward": 0.5}, 20))
    assert lines(folder.metrics, "eval")[0]["left_out"] == 5
