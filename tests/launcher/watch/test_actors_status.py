"""`verst status` of an app that is starting: who waits for whom, and who is started again."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

from rich.console import Console

from tests.launcher.actors.test_app import GOOD, load
from verst.launcher.actors.app import make_plan
from verst.launcher.watch.actors_status import print_actors
from verst.runtime.actors import Member, create_keys
from verst.runtime.run.folder import RunFolder


def test_an_actor_that_waits_and_one_that_is_started_again_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "app")
    folder.create()
    create_keys(folder)
    folder.start_generation()
    make_plan(load(tmp_path, GOOD), "python", "", "127.0.0.1", None).write(folder.plan)
    said = io.StringIO()

    async def starting() -> None:
        async with (
            await Member.join(folder, "waiting_worker", 1, None),
            await Member.join(folder, "ledger", 0, None),
        ):
            folder.event(
                "process_restarted",
                process="ledger-0",
                ending="signal 9 (SIGKILL)",
                restart=2,
                lines=["it was", "killed"],
                group="actors",
                node=0,
            )
            print_actors(folder, Console(file=said, width=120))

    asyncio.run(starting())
    lines = [" ".join(line.split()) for line in said.getvalue().splitlines()]
    assert "worker-1 waiting actors/0 127.0.0.1" in lines
    # Its file is still there, as of before it was killed.
    assert "ledger-0 restarting actors/0 127.0.0.1 2 signal 9 (SIGKILL)" in lines
    assert "worker-0 absent actors/1" in lines
    assert not [line for line in lines if line.startswith("waiting_")]
    at = next(i for i, line in enumerate(lines) if line.startswith("failed first: ledger-0 on node actors/0"))
    assert lines[at + 1 : at + 3] == ["| it was", "| killed"]
