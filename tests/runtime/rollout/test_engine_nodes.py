"""An engine over several nodes: its parts meet anew after any of them has failed, and never in an old meeting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from verst.runtime.rollout import engine_nodes
from verst.runtime.rollout.engine_nodes import Meeting, other_meeting, take_part, tell_failed, wait_failed
from verst.runtime.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(engine_nodes, "_POLL_S", 0.02)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def test_parts_find_the_present_meeting_and_then_wait_for_the_next(run: RunFolder) -> None:
    async def work() -> None:
        first = Meeting.open(run, 3, "127.0.0.1")
        assert await other_meeting(run, 3, than=None) == first
        waiting = asyncio.create_task(other_meeting(run, 3, than=first.id))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        second = Meeting.open(run, 3, "::1")
        assert await asyncio.wait_for(waiting, 5) == second
        assert second.address.startswith("[::1]:")

    asyncio.run(work())


def test_a_failure_counts_for_its_own_meeting_alone(run: RunFolder) -> None:
    async def work() -> None:
        old, new = Meeting.open(run, 0, "127.0.0.1"), Meeting.open(run, 0, "127.0.0.1")
        tell_failed(run, 0, old, "of the past")
        watching = asyncio.create_task(wait_failed(run, 0, new))
        await asyncio.sleep(0.1)
        assert not watching.done()
        tell_failed(run, 0, new, "part 1 died")
        assert await asyncio.wait_for(watching, 5) == "part 1 died"

    asyncio.run(work())


def test_a_part_that_was_started_again_does_not_join_where_it_died(run: RunFolder) -> None:
    meeting = Meeting.open(run, 0, "127.0.0.1")
    assert take_part(run, 0, 1, meeting)
    assert not take_part(run, 0, 1, meeting)
    assert take_part(run, 0, 2, meeting)
    assert take_part(run, 0, 1, Meeting.open(run, 0, "127.0.0.1"))
