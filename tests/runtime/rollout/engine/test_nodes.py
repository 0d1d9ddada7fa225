"""An engine over several nodes: its parts meet anew after any of them has failed, and never in an old meeting."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from verst.runtime.rollout.engine import nodes as engine_nodes
from verst.runtime.rollout.engine.nodes import (
    Meeting,
    next_meeting,
    other_meeting,
    take_part,
    tell_failed,
    wait_failed,
)
from verst.runtime.run.folder import RunFolder


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


@pytest.mark.long
def test_a_part_whose_first_node_never_comes_gives_up_in_time_and_says_for_what_it_waited(
    run: RunFolder,
) -> None:
    """The part's own process, as its node agent starts it."""
    rollout = {"reward": "unused:here", "nodes_per_engine": 2, "start_timeout_s": 0.5}
    run.recipe.write_text(json.dumps({"rollout": rollout}))
    command = [sys.executable, "-P", "-m", "verst.runtime.rollout.engine.part"]
    done = subprocess.run(
        [*command, "--run", str(run.root), "--index", "3"], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert done.returncode == 1
    assert (
        f"the first node of engine 1 has not opened a meeting (engines/1.json in {run.root}) within 0.5 s "
        "(rollout.start_timeout_s)" in done.stderr
    )


def test_the_next_meeting_after_a_failure_must_come_in_time(run: RunFolder) -> None:
    async def work() -> None:
        meeting = Meeting.open(run, 0, "127.0.0.1")
        with pytest.raises(TimeoutError, match=f"engine 0 has not opened another meeting than {meeting.id}"):
            await next_meeting(run, 0, meeting.id, 0.2)
        waiting = asyncio.create_task(next_meeting(run, 0, meeting.id, 20))
        another = Meeting.open(run, 0, "127.0.0.1")
        assert await waiting == another

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
