"""How the parts of an engine over several nodes find each other, and learn that one of them has failed.

Each time the worker on the engine's first node starts SGLang, it opens a meeting: `engines/<engine>.json` in the run
folder. The parts on the other nodes (`part.py`) then start SGLang for that meeting. SGLang's ranks cannot join again,
so the meeting is over when any part fails. That part writes `engines/<engine>.failed`, the worker ends, and its node
agent starts another worker, which opens the next meeting.
"""

from __future__ import annotations

import asyncio
import secrets

import msgspec

from verst.runtime.rollout.engine.server import free_port
from verst.runtime.run.folder import RunFolder, write_atomically

_POLL_S = 2.0  # between two looks into the run folder


class Meeting(msgspec.Struct, frozen=True):
    """One start of an engine over several nodes."""

    id: str
    address: str  # host:port where SGLang's ranks find each other

    @staticmethod
    def open(folder: RunFolder, engine: int, host: str) -> Meeting:
        """Announces that the engine starts now, and that its parts meet at a free port of `host`."""
        name = f"[{host}]" if ":" in host else host
        meeting = Meeting(secrets.token_hex(8), f"{name}:{free_port(host)}")
        (folder.root / "engines").mkdir(mode=0o700, exist_ok=True)
        write_atomically(folder.root / f"engines/{engine}.json", msgspec.json.encode(meeting))
        return meeting

    @staticmethod
    def read(folder: RunFolder, engine: int) -> Meeting | None:
        """The engine's latest meeting, or None if it has had none."""
        try:
            return msgspec.json.decode((folder.root / f"engines/{engine}.json").read_bytes(), type=Meeting)
        except FileNotFoundError:
            return None


async def other_meeting(folder: RunFolder, engine: int, than: str | None) -> Meeting:
    """Waits for a meeting that is not `than`, without a deadline (`next_meeting` has one)."""
    while True:
        meeting = await asyncio.to_thread(Meeting.read, folder, engine)
        if meeting is not None and meeting.id != than:
            return meeting
        await asyncio.sleep(_POLL_S)


async def next_meeting(folder: RunFolder, engine: int, than: str | None, within_s: float) -> Meeting:
    """Waits for a meeting that is not `than`. Raises TimeoutError if none is opened within `within_s`."""
    try:
        async with asyncio.timeout(within_s):
            return await other_meeting(folder, engine, than)
    except TimeoutError:
        which = "a meeting" if than is None else f"another meeting than {than}"
        raise TimeoutError(
            f"the first node of engine {engine} has not opened {which} (engines/{engine}.json in {folder.root}) "
            f"within {within_s:g} s (rollout.start_timeout_s). Either its worker did not start, or its log says why"
        ) from None


def take_part(folder: RunFolder, engine: int, part: int, meeting: Meeting) -> bool:
    """Writes down that this part joins the meeting. Returns False if it joined before: it has died in between."""
    path = folder.root / f"engines/{engine}-part-{part}"
    if path.exists() and path.read_text() == meeting.id:
        return False
    write_atomically(path, meeting.id.encode())
    return True


def tell_failed(folder: RunFolder, engine: int, meeting: Meeting, why: str) -> None:
    """Announces that a part of the engine has failed in this meeting."""
    path = folder.root / f"engines/{engine}.failed"
    write_atomically(path, f"{meeting.id} {why}".encode())


async def wait_failed(folder: RunFolder, engine: int, meeting: Meeting) -> str:
    """Waits until a part announces that it has failed in this meeting; returns the reason."""
    path = folder.root / f"engines/{engine}.failed"
    while True:
        if await asyncio.to_thread(path.exists):
            id, _, why = (await asyncio.to_thread(path.read_text)).partition(" ")
            if id == meeting.id:
                return why
        await asyncio.sleep(_POLL_S)
