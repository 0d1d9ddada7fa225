"""Hostile and broken members against a real caller on real sockets: whatever comes back, the call ends in time with a
result or an error that says why not, and the caller goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.actors.live_member import (
    ANSWER_S,
    Awkward,
    Frames,
    Live,
    cut,
    damaged,
)
from verst.runtime.actors import (
    ActorError,
    CallRefused,
    CallTimeout,
    Member,
    MemberLost,
    RemoteError,
    StaleGeneration,
    wire,
)
from verst.runtime.actors.directory import MemberInfo, Registration
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.security import read_keys
from verst.runtime.actors.shared_memory import Reference


class Impostor:
    """Advertises itself as a member, has the keys, and answers what it is told to."""

    def __init__(self, live: Live, index: int, kind: int = zmq.ROUTER) -> None:
        self.answers: Callable[[wire.Envelope], list[Frames]] = lambda _: []
        self.asked = 0
        keys, self._context = read_keys(live.folder), zmq.Context()
        raw = self._context.socket(kind)
        keys.guard(raw)
        self.port = raw.bind_to_random_port("tcp://127.0.0.1")
        info = MemberInfo(
            role="impostor",
            index=index,
            generation=0,
            incarnation=f"impostor-{index}",
            host="127.0.0.1",
            port=self.port,
            pid=os.getpid(),
        )
        Registration(live.folder, info).write()
        self.raw = raw
        self._socket = PolledSocket(raw, self._on_message, head=3, max_frames=wire.MAX_FRAMES)

    def _on_message(self, frames: list[Any]) -> None:
        route, *message = frames
        for envelope, _ in wire.read(message):
            if envelope.kind == "call":
                self.asked += 1
                for answer in self.answers(envelope):
                    self._socket.send([route, *answer])

    def close(self) -> None:
        self._socket.close()
        self._context.destroy(linger=0)


def reply(call: wire.Envelope, body: Any, kind: Any = "reply", **changes: Any) -> Frames:
    """As the member that was called would write it."""
    good = wire.Envelope(wire.PROTOCOL, kind, call.call, 0, call.receiver, "impostor-0", "")
    frames = wire.write(msgspec.structs.replace(good, **changes), wire.encode(body))
    return [bytes(frame) for frame in frames]


def packed(call: wire.Envelope, body: bytes, times: int = 1) -> Frames:
    """A frame of small answers, the same so many times."""
    envelope = wire.Envelope(wire.PROTOCOL, "reply", call.call, 0, call.receiver, "impostor-0", "")
    return [wire.pack([wire.Packed(envelope, body)] * times)]


NAMES = wire.Fault("raised", "E", "m", "t")
ANSWERS: dict[str, tuple[Callable[[wire.Envelope], list[Frames]], Any]] = {
    "nothing": (lambda _: [], CallTimeout),
    "garbage": (lambda _: [[b"garbage"]], MemberLost),
    "no frames to speak of": (lambda _: [[b""]], MemberLost),
    "another protocol": (lambda c: [reply(c, 1, protocol=9)], MemberLost),
    "too many frames": (lambda c: [[*reply(c, 1), *[b""] * (wire.MAX_FRAMES + 5)]], MemberLost),
    "another number": (lambda c: [reply(c, 1, call=c.call + 1), reply(c, 1, call=-1)], CallTimeout),
    "twice": (lambda c: [reply(c, 1), reply(c, 2), reply(c, NAMES, "error")], 1),
    "another type": (lambda c: [reply(c, ["no", "number"])], CallRefused),
    "an envelope alone": (lambda c: [reply(c, 1)[:1]], MemberLost),
    "no body": (lambda c: [[reply(c, 1)[0], b""]], CallRefused),
    "no body in a pack": (lambda c: [packed(c, b"")], CallRefused),
    "a body in a pack that is none": (lambda c: [packed(c, b"\x91" * 4000)], CallRefused),
    "a large pack": (lambda c: [packed(c, b"\1", wire.MAX_PACKED + 1)], MemberLost),
    "twice in a pack": (lambda c: [packed(c, b"\1", 2)], 1),
    "depth": (lambda c: [[reply(c, 1)[0], b"\x91" * 100_000]], CallRefused),
    "an error": (lambda c: [reply(c, NAMES, "error")], RemoteError),
    "an error that is none": (lambda c: [reply(c, 1, "error")], CallRefused),
    "stale": (lambda c: [reply(c, wire.Fault("stale", "", "old"), "error", generation=9)], StaleGeneration),
    "an item": (lambda c: [reply(c, 1, "item")], CallRefused),
    "a call": (lambda c: [reply(c, 1, "call")], CallRefused),
    "memory that is not there": (
        lambda c: [[*reply(c, 1, shared=(Reference(2, 1, 3, 4, 5, 0, 5),)), b""]],
        CallRefused,
    ),
}


@pytest.fixture(scope="module")
def driver(live: Live) -> Iterator[Member]:
    made = live.run(Member.join(live.folder, "driver", 1, None))
    yield made
    live.run(made.leave())


@pytest.fixture(scope="module")
def impostor(live: Live) -> Iterator[Impostor]:
    async def make() -> Impostor:
        return Impostor(live, 0)

    async def close() -> None:
        made.close()

    made = live.run(make())
    yield made
    live.run(close())


async def ask(member: Member, impostor: Impostor, answers: Callable[[wire.Envelope], list[Frames]]) -> Any:
    """What a caller gets of such an answer; a member that is sound answers it afterwards."""
    impostor.answers = answers
    try:
        return await member.handle(Awkward, "impostor", 0, timeout=0.3).count()
    except ActorError as error:
        return error
    finally:
        assert await member.handle(Awkward, "echo", 0, timeout=ANSWER_S).same("still here") == "still here"


@pytest.mark.parametrize("name", ANSWERS)
def test_a_caller_survives_any_answer(live: Live, driver: Member, impostor: Impostor, name: str) -> None:
    answers, expected = ANSWERS[name]
    result = live.run(ask(driver, impostor, answers))
    assert result == expected if isinstance(expected, int) else type(result) is expected, result
    assert live.run(ask(driver, impostor, lambda c: [reply(c, 41)])) == 41  # nothing of it stays


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_caller_survives_damaged_answers(
    live: Live, driver: Member, impostor: Impostor, data: st.DataObject
) -> None:
    example = reply(wire.Envelope(wire.PROTOCOL, "call", 2**40, 0, "", "", ""), NAMES, "error")
    frames = data.draw(
        damaged(example) | cut(example) | st.lists(st.binary(max_size=60), min_size=1, max_size=4)
    )
    result = live.run(ask(driver, impostor, lambda c: [frames, reply(c, 5)]))
    assert result == 5 or isinstance(result, MemberLost), result
    assert not [pending for each in driver._links.open.values() for pending in each._pending]


def test_a_stream_of_more_items_than_were_asked_for_is_refused(
    live: Live, driver: Member, impostor: Impostor
) -> None:
    async def take_slowly() -> None:
        async for _ in driver.handle(Awkward, "impostor", 0, timeout=5.0).numbers(1000):
            await asyncio.sleep(0.01)

    impostor.answers = lambda c: [reply(c, n, "item") for n in range(1000)]
    with pytest.raises(CallRefused, match="not requested"):
        live.run(take_slowly())
    assert live.run(ask(driver, impostor, lambda c: [reply(c, 41)])) == 41


def test_a_peer_that_talks_unasked_is_left_alone(live: Live, driver: Member) -> None:
    """Its link ends at the first word, and no other is made until somebody calls it again."""

    async def babble(babbler: Impostor, until: Callable[[], bool]) -> None:
        while not until():
            with contextlib.suppress(zmq.Again):
                babbler.raw.send(b"psst", zmq.NOBLOCK)
            await asyncio.sleep(0.01)

    async def work() -> int:
        babbler, connections = Impostor(live, 1, zmq.DEALER), 0
        monitor = babbler.raw.get_monitor_socket(zmq.EVENT_ACCEPTED)
        try:
            call = asyncio.ensure_future(driver.handle(Awkward, "impostor", 1, timeout=3.0).count())
            await babble(babbler, call.done)
            assert isinstance(call.exception(), MemberLost)
            until = time.monotonic() + 0.5
            await babble(babbler, lambda: time.monotonic() > until)
            while monitor.poll(0):
                monitor.recv_multipart()
                connections += 1
        finally:
            babbler.raw.disable_monitor()
            babbler.close()
        return connections

    assert live.run(work()) == 1
