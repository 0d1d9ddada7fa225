"""A member on real sockets in this process, and a bare peer that can send it anything: for the fuzzing tests."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import zmq
from hypothesis import strategies as st

from tests.runtime.actors.echo import Echo, Scores
from verst.runtime.actors import (
    Member,
    create_keys,
    wire,
)
from verst.runtime.actors.actor import methods
from verst.runtime.actors.codec import Buffer
from verst.runtime.actors.security import read_keys
from verst.runtime.run.folder import RunFolder

ANSWER_S = 10.0  # a good call after a burst; unloaded it takes milliseconds
GROWTH_BYTES = 12 << 20  # allowed to RSS over tens of thousands of bad messages: malloc's, not theirs
# Each message that is neither cancel, more nor taken is counted under exactly one of these.
OUTCOMES = ("calls", "duplicate", "refused", "stale", "not_here", "unexpected_kind", "malformed_")

Frames = list[bytes]


class Awkward(Echo):
    """Raises what cannot easily be told, and answers what nests deeply."""

    async def surrogate(self) -> None:
        raise LookupError("a file named \udcff")

    async def unprintable(self) -> None:
        class Unprintable(Exception):
            def __str__(self) -> str:
                raise ZeroDivisionError

        raise Unprintable

    async def verbose(self) -> None:
        raise LookupError("x" * (1 << 20))

    async def same(self, value: Any) -> Any:
        return value

    async def deep(self, levels: int) -> Any:
        value: list[Any] = []
        for _ in range(levels):
            value = [value]
        return value

    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


class Live:
    """A run with members on a loop in a thread of its own, and a bare peer here."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root / "run")
        self.folder.create()
        self.folder.start_generation()
        create_keys(self.folder)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.echo = Awkward()
        self.member = self.run(Member.join(self.folder, "echo", 0, self.echo))
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.peer = self.connect(read_keys(self.folder).unlock)
        self._number = 2**40  # large from the start, so that all envelopes have one length

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 30.0) -> Any:
        """Runs a coroutine on the members' loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def connect(self, prepare: Callable[[zmq.Socket[bytes]], None]) -> zmq.Socket[bytes]:
        """A bare DEALER, as another program would use it."""
        dealer = self.context.socket(zmq.DEALER)
        prepare(dealer)
        dealer.setsockopt(zmq.SNDHWM, 0)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(self.member.info.endpoint)
        return dealer

    def envelope(self, method: str = "count", /, **changes: Any) -> wire.Envelope:
        """A good one, as a member of the run would write it."""
        self._number += 1
        info = self.member.info
        good = wire.Envelope(
            wire.PROTOCOL,
            "call",
            self._number,
            info.generation,
            "p",
            "driver-9",
            info.incarnation,
            method,
            10.0,
        )
        return msgspec.structs.replace(good, **changes)

    def good(self, method: str, /, *values: Any, **changes: Any) -> Frames:
        """A good message, unless `changes` of its envelope make it another."""
        body = methods(Awkward)[method].arguments(*values)
        return [bytes(frame) for frame in wire.write(self.envelope(method, **changes), wire.encode(body))]

    def scale(self, /, **changes: Any) -> Frames:
        """A call with a struct, a map and an array, each by another caller: a wild number silences its own alone."""
        sender = f"{self._number:x}"
        return self.good(
            "scale", Scores("x", np.arange(20.0), {"k": 1}), 2, "", **{"sender": sender, **changes}
        )

    def send(self, burst: list[Frames]) -> None:
        for frames in burst:
            self.peer.send_multipart(frames)

    def answer(
        self, call: int, peer: zmq.Socket[bytes] | None = None
    ) -> tuple[wire.Envelope, Sequence[Buffer]]:
        """The answer to one call; those to the burst are read and dropped."""
        peer = self.peer if peer is None else peer
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            if peer.poll(100):
                frames = peer.recv_multipart()
                for envelope, message in wire.read(frames):
                    if envelope.call == call:
                        return envelope, message
        raise AssertionError(f"no answer to call {call} within {ANSWER_S} s")

    def check_alive(self) -> None:
        """A good call on the peer's connection is executed, once, and answered in time."""
        before = self.echo.calls
        frames = self.good("count")
        self.send([frames])
        assert wire.read_body(int, self.answer(self._number)[1]) == before + 1

    def outcomes(self) -> int:
        """How many messages were counted so far."""
        return sum(n for reason, n in self.member.counts.items() if reason.startswith(OUTCOMES))

    def size(self) -> dict[str, int]:
        """What must not grow with bad messages."""

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        # asyncio's own come as file reads happen to overlap, six of a loop at most
        executors = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
        return {
            "tasks": self.run(tasks()),
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")) - executors,
        }

    def settle(self, size: dict[str, int], seconds: float = 10.0) -> None:
        """Waits until nothing is more than it was."""
        until = time.monotonic() + seconds
        while any(now > size[name] for name, now in self.size().items()):
            assert time.monotonic() < until, (self.size(), size)
            time.sleep(0.05)

    def wait_until(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + ANSWER_S
        while not true():
            assert time.monotonic() < until, self.member.counts
            time.sleep(0.02)

    def wait_counted(self, reason: str, count: int) -> None:
        self.wait_until(lambda: self.member.counts[reason] >= count)

    def close(self) -> None:
        self.context.destroy(linger=0)
        self.run(self.member.leave())
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def rss() -> int:
    return psutil.Process().memory_info().rss


@st.composite
def damaged(draw: st.DrawFn, frames: Frames) -> Frames:
    """At most three bytes of it are changed, so that no call becomes one of another method."""
    changed = [bytearray(frame) for frame in frames]
    for _ in range(draw(st.integers(1, 3))):
        frame = draw(st.sampled_from(changed))
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return [bytes(frame) for frame in changed]


@st.composite
def cut(draw: st.DrawFn, frames: Frames) -> Frames:
    place = draw(st.integers(0, len(frames) - 1))
    return [
        *frames[:place],
        frames[place][: draw(st.integers(0, len(frames[place]) - 1))],
        *frames[place + 1 :],
    ]
