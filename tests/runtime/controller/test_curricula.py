"""A curriculum is asked before each step, sees what was scored, and a resumed run draws as the whole one does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.runtime.controller.test_training import Trainers
from tests.runtime.controller.test_training import training as step_training
from tests.runtime.sample_factory import make_group
from verst.runtime.controller.curricula import Curricula
from verst.runtime.data.config import SourceConfig, TrainConfig
from verst.runtime.data.curriculum import CurriculumCall
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.sources import TrainingPrompts
from verst.runtime.hooks.errors import HookError
from verst.runtime.messages.group_ids import group_id
from verst.runtime.messages.sample import GroupMeta

CALLS: list[CurriculumCall] = []


def lowest_first(call: CurriculumCall) -> np.ndarray:
    """The rows that were answered least well, or never."""
    CALLS.append(call)
    return 1.01 - np.nan_to_num(call.history.mean, nan=0.0)


def too_few(call: CurriculumCall) -> list[float]:
    return [1.0]


def training(folder: Path, hook: str = "lowest_first") -> TrainingPrompts:
    given = {}
    for name, rows in (("drawn", 6), ("plain", 3)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": name, "label": n}) + "\n" for n in range(rows)))
        curriculum = f"{__name__}:{hook}" if name == "drawn" else None
        given[name] = SourceConfig(path=str(path), curriculum=curriculum)
    train = TrainConfig(chat_template=False, sources=given)
    return TrainingPrompts(train, 3, character_tokenizer(), lambda source: None)


def trained(prompts: TrainingPrompts, position: int) -> GroupMeta:
    """The group of a prompt; the reward is its row's number divided by 10."""
    place = prompts.place(position)
    meta = make_group(group_id(position, 0), samples=2).meta(0)
    return msgspec.structs.replace(meta, rewards=[place.row / 10] * 2, source=place.source, row=place.row)


async def step(curricula: Curricula, prompts: TrainingPrompts, version: int, at: int) -> list[int]:
    """A step on four prompts from `at`; another one is dropped. Returns the rows of the source with a curriculum."""
    groups = [trained(prompts, position) for position in range(at, at + 4)]
    dropped = trained(prompts, at + 4)
    curricula.scored(dropped.id, dropped.rewards[0])
    curricula.dropped(dropped.id, reissued=False)
    await curricula.end_step(version, groups)
    return [group.row for group in (*groups, dropped) if group.source == "drawn" and group.row is not None]


def test_it_sees_what_was_scored_and_a_resumed_run_draws_the_same_rows(tmp_path: Path) -> None:
    async def whole() -> tuple[list[list[int]], bytes, bytes]:
        prompts = training(tmp_path)
        curricula = Curricula(prompts)
        await curricula.begin(0, 5, b"", [])
        rows, saved = [], b""
        for version in range(4):
            rows.append(await step(curricula, prompts, version + 1, 5 * version))
            if version == 1:
                saved = curricula.state()
        return rows, saved, curricula.state()

    async def resumed(saved: bytes) -> tuple[list[list[int]], bytes]:
        prompts = training(tmp_path)
        curricula = Curricula(prompts)
        await curricula.begin(2, 5, saved, [])
        rows = [await step(curricula, prompts, version + 1, 5 * version) for version in (2, 3)]
        return rows, curricula.state()

    CALLS.clear()
    rows, saved, at_end = asyncio.run(whole())
    assert [(call.source, call.step, call.steps) for call in CALLS] == [("drawn", n, 5) for n in range(1, 6)]
    assert [row.label for row in CALLS[0].rows] == list(range(6))
    assert CALLS[0].history.groups.sum() == 0
    first = CALLS[1].history
    assert set(np.flatnonzero(first.groups)) == set(rows[0])
    assert all(first.mean[row] == row / 10 for row in rows[0])
    assert CALLS[4].history.groups.sum() == sum(map(len, rows))
    again, end = asyncio.run(resumed(saved))
    assert again == rows[2:]
    assert end == at_end


def test_groups_of_an_earlier_life_keep_their_rows(tmp_path: Path) -> None:
    async def begun() -> TrainingPrompts:
        prompts = training(tmp_path)
        meta = msgspec.structs.replace(make_group(group_id(2, 0), samples=2).meta(0), source="drawn", row=4)
        await Curricula(prompts).begin(0, 5, b"", [meta])
        return prompts

    prompts = asyncio.run(begun())
    assert prompts.place(2) == ("drawn", 4)
    others = [
        place.row for position in (0, 4, 6, 8, 10) if (place := prompts.place(position)).source == "drawn"
    ]
    assert 4 not in others


def test_a_group_that_was_trained_in_an_earlier_life_holds_its_row_no_longer(tmp_path: Path) -> None:
    """A shard tells of it as long as its segment has another group that is not trained."""

    async def rows(earlier: bool) -> list[int]:
        prompts = training(tmp_path)
        meta = trained(prompts, 0)
        curricula = Curricula(prompts)
        await curricula.begin(0, 5, b"", [])
        await curricula.end_step(1, [meta])
        prompts = training(tmp_path)
        again = Curricula(prompts)
        await again.begin(1, 5, curricula.state(), [meta] if earlier else [], done={0})
        return [prompts.place(position).row for position in range(2, 14, 2)]

    assert asyncio.run(rows(earlier=True)) == asyncio.run(rows(earlier=False))


def test_with_other_rows_a_curriculum_begins_anew(tmp_path: Path) -> None:
    async def history(now: str) -> int:
        prompts = training(tmp_path)
        curricula = Curricula(prompts, "as they were")
        await curricula.begin(0, 5, b"", [])
        await curricula.end_step(1, [trained(prompts, 0)])
        again = training(tmp_path)
        await Curricula(again, now).begin(1, 5, curricula.state(), [])
        return int(again.curricula["drawn"].history.groups.sum())

    assert asyncio.run(history("as they were")) == 1
    assert asyncio.run(history("others")) == 0


def test_a_group_that_is_issued_again_is_not_done(tmp_path: Path) -> None:
    async def run() -> None:
        prompts = training(tmp_path)
        curricula = Curricula(prompts)
        await curricula.begin(0, 5, b"", [])
        meta = trained(prompts, 0)
        assert meta.source == "drawn"
        curricula.dropped(meta.id, reissued=True)
        await curricula.end_step(1, [])
        assert CALLS[-1].history.groups.sum() == 0
        assert prompts.place(0).row == meta.row
        await curricula.end_step(2, [meta])
        assert CALLS[-1].history.groups[meta.row] == 1

    asyncio.run(run())


def test_a_wrong_value_is_told_with_source_and_step(tmp_path: Path) -> None:
    with pytest.raises(
        HookError, match=r"curriculum '.*:too_few', source drawn, step 1: returned weights of shape"
    ):
        asyncio.run(Curricula(training(tmp_path, "too_few")).begin(0, 5, b"", []))


def test_a_curriculum_hears_of_the_groups_of_a_step_that_is_only_kept() -> None:
    ended: list[tuple[int, list[GroupMeta]]] = []

    async def end_step(step: int, groups: list[GroupMeta]) -> None:
        ended.append((step, groups))

    kept = step_training(Trainers(), [])
    kept._record.groups_kept = lambda step: {}  # type: ignore[method-assign]
    kept._curricula.end_step = end_step  # type: ignore[method-assign,assignment]
    groups = [make_group(0).meta(0)]
    asyncio.run(kept.keep(7, groups))
    assert ended == [(7, groups)]
