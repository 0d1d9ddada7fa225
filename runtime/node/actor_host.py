"""The process of one actor of an app, or of the app's main function.

A node agent starts it: `python -m verst.runtime.node.actor_host --run DIR --role R --index K`. It waits for
the actors that its own must come after (`after`), makes its actor and serves it. When it is told to stop, it
waits until the actors that came after it have gone (or a deadline has passed). So an app is taken down in the
reverse order of its start.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.actors import Actor, Member
from verst.runtime.hooks.dotted import load
from verst.runtime.run.ending import STOPPED
from verst.runtime.run.folder import RunFolder

log = logging.getLogger(__name__)

MAIN = "main"  # the role of the process whose end is the app's
WAITING = "waiting_"  # prefix of the role of a process that still waits for earlier actors
_LEAVE_S = 5.0  # less than the agent's grace


class Hosted(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of actor: what its processes need to know."""

    actor: str  # dotted path of its class
    arguments: dict[str, Any] = {}
    count: int = 1
    after: tuple[str, ...] = ()
    start_timeout_s: float = 600.0


class Hosting(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `actors.json` in the run folder: an app's actors by role, and its main function."""

    roles: dict[str, Hosted]
    main: str | None = None

    @staticmethod
    def read(folder: RunFolder) -> Hosting:
        """Reads the file that the launcher wrote."""
        return msgspec.json.decode((folder.root / "actors.json").read_bytes(), type=Hosting)

    def write(self, folder: RunFolder) -> None:
        """Writes the file for the processes to read."""
        (folder.root / "actors.json").write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2))

    def later_than(self, role: str) -> list[str]:
        """The roles that start after this one. The main process starts after all."""
        return [*(name for name, hosted in self.roles.items() if role in hosted.after), MAIN]


async def serve(folder: RunFolder, role: str, index: int, hosting: Hosting) -> None:
    """Serves one actor until SIGTERM. Raises the reason if it is fenced off."""
    stop = _stop_asked()
    hosted = hosting.roles[role]
    host = os.environ.get("VERST_HOST", "127.0.0.1")
    made: type[Actor] = load(hosted.actor, f"actors.{role}.actor")
    if hosted.after:
        async with await Member.join(folder, f"{WAITING}{role}", index, None, host) as waiting:
            if not await _until(stop, _wait_for(waiting, hosting, hosted.after, hosted.start_timeout_s)):
                return
    member = await Member.join(folder, role, index, made(**hosted.arguments), host)
    log.info("serves %s", hosted.actor)
    await _until(stop, _fenced_off(member))
    await _wait_until_gone(member, hosting.later_than(role))
    await member.leave()


async def run_main(folder: RunFolder, hosting: Hosting) -> int:
    """Runs the app's main function, `async def main(member)`, once all actors are present.

    The end of the function is the end of the app. Without a main function, it waits to be told to stop. A
    preemption (the agent's SIGUSR2) cancels the function. Returns the exit code.
    """
    main = load(hosting.main, "main") if hosting.main else _forever
    host = os.environ.get("VERST_HOST", "127.0.0.1")
    stop = _stop_asked(signal.SIGUSR2)
    async with await Member.join(folder, MAIN, 0, None, host) as member:
        longest = max((hosted.start_timeout_s for hosted in hosting.roles.values()), default=0.0)
        if not await _until(stop, _wait_for(member, hosting, tuple(hosting.roles), longest)):
            return STOPPED
        return 0 if await _until(stop, main(member)) else STOPPED


async def _forever(member: Member) -> None:
    await asyncio.Event().wait()


async def _until(stop: asyncio.Future[None], work: Coroutine[Any, Any, None]) -> bool:
    """Runs `work` until its end or until `stop`, which cancels it. Returns whether it came to its end.

    Raises the exception of the work, if any.
    """
    running = asyncio.ensure_future(work)
    await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
        return True
    running.cancel()
    await asyncio.wait({running}, timeout=_LEAVE_S)
    return False


async def _fenced_off(member: Member) -> None:
    """Waits until the membership ends without our asking, and raises the reason."""
    if (reason := await member.wait_left()) is not None:
        raise reason


async def _wait_for(member: Member, hosting: Hosting, roles: tuple[str, ...], timeout_s: float) -> None:
    await asyncio.gather(*(member.wait_for(role, hosting.roles[role].count, timeout_s) for role in roles))


async def _wait_until_gone(member: Member, roles: list[str]) -> None:
    for _ in range(round(_LEAVE_S / 0.1)):
        if not any([await member.present(role) for role in roles]):
            return
        await asyncio.sleep(0.1)


def _stop_asked(*also: signal.Signals) -> asyncio.Future[None]:
    """A future that is done when this process is told to stop, by SIGTERM, SIGHUP or one of `also`.

    Under Slurm, SIGTERM does not count: Slurm sends it to every process. The agent then sends SIGHUP.
    """
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def ask() -> None:
        if not stop.done():
            stop.set_result(None)

    shielded = "VERST_SHIELDED" in os.environ
    loop.add_signal_handler(signal.SIGTERM, (lambda: None) if shielded else ask)
    for number in (signal.SIGHUP, *also):
        loop.add_signal_handler(number, ask)
    return stop


def main() -> int:
    """Runs the command line. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--role", required=True)
    parser.add_argument("--index", type=int, default=0)
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    hosting = Hosting.read(folder)
    if arguments.role == MAIN:
        return asyncio.run(run_main(folder, hosting))
    asyncio.run(serve(folder, arguments.role, arguments.index, hosting))
    return 0


if __name__ == "__main__":
    sys.exit(main())
