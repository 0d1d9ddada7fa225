"""Own figures of samples and of a loss stand under `own`, the parts of rewards under `scores`, apart from ours."""

from __future__ import annotations

import math

import msgspec

from tests.runtime.controller.reporting.test_numbers import group, report
from tests.runtime.sample_factory import make_sample
from verst.runtime.controller.reporting.measure import RolloutMeasure, StepRecord
from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.metrics.trace import NO_TRACE


def line(groups: list[GroupMeta], metrics: dict[str, float]) -> dict:
    record = StepRecord(RolloutMeasure(), NO_TRACE)
    record.step_begins(groups, 20)
    return record.step_ends(msgspec.structs.replace(report(20), metrics=metrics))


def test_they_are_means_over_the_samples_that_have_them():
    first = msgspec.structs.replace(
        group(0, [1.0, 0.0]),
        figures={"tool_calls": (5.0, 2)},
        scores={"right": [1.0, 0.0], "style": [math.nan, 0.5]},
    )
    second = msgspec.structs.replace(group(1, [1.0, 1.0]), scores={"right": [1.0, 1.0]})
    made = line(
        [first, second], {"entropy": 0.5, "own/surprise": 2.0, "own/entropy": 7.0, "own/tool_calls": 9.0}
    )
    assert made["own"] == {"tool_calls": 2.5, "surprise": 2.0, "entropy": 7.0, "loss_tool_calls": 9.0}
    assert made["scores"] == {"right": 0.75, "style": 0.5}
    assert made["entropy"] == 0.5, "a figure of a user's loss hides none of ours"
    assert not [name for name in made if name.startswith("own/")]


def test_a_group_tells_the_parts_of_its_rewards():
    samples = [make_sample(0, i, routing=None) for i in range(2)]
    samples[1] = msgspec.structs.replace(samples[1], scores={"right": 1.0}, episode=0)
    meta = Group(id=0, samples=samples).meta(0)
    assert math.isnan(meta.scores["right"][0])
    assert (meta.scores["right"][1], meta.episodes) == (1.0, [0, 0])
