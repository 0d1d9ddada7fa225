"""Own figures of samples and of a loss stand under `own`, the parts of rewards under `scores`, apart from ours."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from tests.runtime.controller.reporting.test_numbers import a_step, report
from tests.runtime.controller.reporting.test_numbers import group as plain
from tests.runtime.sample_factory import make_sample
from verst.runtime.controller.reporting.measure import RolloutMeasure, StepRecord
from verst.runtime.messages.sample import Group, GroupMeta, Sample, decode_group, encode_group
from verst.runtime.metrics.trace import NO_TRACE


def sample(group: int, index: int, **metadata) -> Sample:
    return Sample(
        group=group, index=index, prompt_ids=np.ones(2, np.int32), response_ids=np.ones(3, np.int32),
        logprobs=np.zeros(3, np.float32), loss_mask=np.ones(3, np.uint8), weight_versions=np.zeros(3, np.int32),
        reward=1.0, finish="stop", signals={"temperature": np.ones(3, np.float32)}, metadata=metadata,
    )  # fmt: skip


def line(groups: list[GroupMeta], metrics: dict[str, float]) -> dict:
    record = StepRecord(RolloutMeasure(), NO_TRACE)
    record.step_begins(groups, 20)
    return record.step_ends(msgspec.structs.replace(report(20), metrics=metrics))


def test_they_are_means_over_the_samples_that_have_them():
    one = Group(
        id=0, samples=[sample(0, 0, figures={"tools": 1, "format": 0.5}), sample(0, 1, figures={"tools": 2})]
    )
    other = Group(id=1, samples=[sample(1, 0, figures={"tools": 6}), sample(1, 1)])
    metas = [decode_group(encode_group(group)).meta(0) for group in (one, other)]  # as the journal has them
    line = a_step([*metas, plain(2, [0.0, 1.0])])
    assert line["own"] == {"format": 0.5, "tools": 3.0}
    assert "own" not in a_step([plain(2, [0.0, 1.0])])


@pytest.mark.parametrize("figures", [{"tools": "many"}, {"tools": float("nan")}, [1.0], {"tools": None}])
def test_what_is_no_number_is_refused_with_its_name(figures):
    with pytest.raises(ValueError, match=r"sample 0 of group 4: metadata\['figures'\].* is "):
        sample(4, 0, figures=figures).validate()


def test_those_of_a_loss_and_the_parts_of_rewards_hide_none_of_ours():
    first = msgspec.structs.replace(
        plain(0, [1.0, 0.0]),
        figures={"tool_calls": (5.0, 2)},
        scores={"right": [1.0, 0.0], "style": [math.nan, 0.5]},
    )
    second = msgspec.structs.replace(plain(1, [1.0, 1.0]), scores={"right": [1.0, 1.0]})
    made = line(
        [first, second], {"entropy": 0.5, "own/surprise": 2.0, "own/entropy": 7.0, "own/tool_calls": 9.0}
    )
    assert made["own"] == {"tool_calls": 2.5, "surprise": 2.0, "entropy": 7.0, "loss_tool_calls": 9.0}
    assert made["scores"] == {"right": 0.75, "style": 0.5}
    assert made["entropy"] == 0.5
    assert not [name for name in made if name.startswith("own/")]


def test_a_group_tells_the_parts_of_its_rewards():
    samples = [make_sample(0, i, routing=None) for i in range(2)]
    samples[1] = msgspec.structs.replace(samples[1], scores={"right": 1.0}, episode=0)
    meta = decode_group(encode_group(Group(id=0, samples=samples))).meta(0)
    assert math.isnan(meta.scores["right"][0])
    assert (meta.scores["right"][1], meta.episodes) == (1.0, [0, 0])
