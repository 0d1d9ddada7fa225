"""A step's figures by source of prompts."""

from __future__ import annotations

import msgspec
import pytest

from tests.runtime.sample_factory import make_group
from verst.runtime.controller.reporting.by_source import by_source
from verst.runtime.messages.sample import GroupMeta


def group(id: int, source: str, rewards: list[float], cut: int = 0) -> GroupMeta:
    meta = make_group(id, samples=len(rewards)).meta(0)
    finish = ["length" if n < cut else "stop" for n in range(len(rewards))]
    lengths = [10 * (id + 1)] * len(rewards)
    return msgspec.structs.replace(
        meta, source=source, rewards=rewards, finish=finish, trained_tokens=lengths
    )


def test_figures_by_source() -> None:
    groups = [group(0, "sums", [1, 0]), group(1, "words", [1, 1], cut=1), group(2, "sums", [0, 1])]
    figures = by_source(groups, {"words": 4, "code": 1})["sources"]
    assert figures["sums"] == {
        "share": pytest.approx(2 / 3),
        "dropped": 0,
        "reward": 0.5,
        "solved_groups": 0,
        "response_length": 20,
        "truncated": 0,
    }
    assert figures["words"] == {
        "share": pytest.approx(1 / 3),
        "dropped": 4,
        "reward": 1,
        "solved_groups": 1,
        "response_length": 20,
        "truncated": 0.5,
    }
    assert figures["code"] == {"share": 0, "dropped": 1}


def test_one_file_has_no_sources() -> None:
    assert by_source([group(0, "", [1, 0])], {"": 3}) == {}
