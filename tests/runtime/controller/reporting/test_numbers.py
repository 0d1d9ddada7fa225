"""A step has one number everywhere, whatever its stage: that of the weight version that it makes."""

from __future__ import annotations

import json

import msgspec

from verst.runtime.algorithms.evaluation import Scale
from verst.runtime.controller.reporting.measure import RolloutMeasure, StepRecord
from verst.runtime.controller.reporting.reporting import Reporting
from verst.runtime.controller.reporting.shown import ShownFiles
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.loop_state import LoopState, SavedState, Settings
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import StepReport
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.trace import NO_TRACE
from verst.runtime.run.folder import RunFolder

SETTINGS = Settings(
    steps=10, prompts_per_step=2, samples_per_prompt=2, staleness=0, in_order=True, offline_steps=20,
    checkpoint_interval=5, evals=(EvalSet("math", 1, scale=Scale(samples=3)),), min_engines=1,
)  # fmt: skip


def group(id: int, rewards: list[float]) -> GroupMeta:
    size = len(rewards)
    return GroupMeta(
        id=id, shard=0, lengths=[8] * size, trained_tokens=[4] * size, rewards=rewards,
        finish=["stop"] * size, oldest_version=20,
    )  # fmt: skip


def report(trained_from: int) -> StepReport:
    return StepReport(
        step=trained_from, loss=0.5, grad_norm=1.0, lr=1e-6, tokens=32, metrics={}, seconds={"optimizer": 0.1}
    )


def a_step(groups: list[GroupMeta]) -> dict:
    record = StepRecord(RolloutMeasure(), NO_TRACE)
    record.step_begins(groups, 20)
    with record.busy("train", 20):
        pass
    return record.step_ends(report(20))


def test_lines_of_metrics_number_a_step_by_the_version_that_it_makes(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    saved = SavedState(version=20, trained_below=0, trained_above=[], evaluated={})
    state = LoopState(SETTINGS, saved)
    reporting = Reporting(
        folder, MetricsConfig(), state, StepRecord(RolloutMeasure(), NO_TRACE), NO_TRACE, {"math": 0}
    )
    reporting.offline_step("sft", 0.5, report(19), {"step": 2.0})
    reporting.note(ev.GroupAccepted(group(0, [0.0, 1.0])))
    reporting.evaluated(
        ev.ReportEval(version=20, when="before", set="math", figures={"reward": 0.5}, prompts=1)
    )
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("stage_step", 20),
        ("rollout_progress", 21),
        ("eval", 20),
    ]
    assert (lines[2]["prompts"], lines[2]["samples"]) == (1, 3)  # three answers to the one prompt
    line = a_step([group(0, [0.0, 1.0])])
    assert (line["step"], line["version"]) == (21, 21)


def test_the_samples_of_a_step_are_kept_under_its_number(tmp_path):
    shown = ShownFiles(
        tmp_path, MetricsConfig(shown_every=10), None, lambda id, held_out: None, lambda id: ("", id)
    )
    chosen = [step for step in range(1, 32) if shown.choose(step, [group(0, [0.0, 1.0])])]
    assert chosen == [1, 11, 21, 31]


def test_an_answer_of_several_samples_counts_once_in_the_rewards_of_a_step():
    several = msgspec.structs.replace(
        group(0, [1.0, 0.0, 0.0, 0.0]), episodes=[0, 1, 1, 1], finish=["stop", "length", "length", "stop"]
    )
    line = a_step([several, group(1, [1.0, 1.0])])
    assert (line["reward"], line["reward_spread"], line["samples_per_episode"]) == (0.75, 0.25, 1.5)
    assert (line["response_length"], line["truncated"]) == ((4 + 12 + 4 + 4) / 4, 0.0)
    assert a_step([group(1, [1.0, 0.0])])["samples_per_episode"] == 1.0
