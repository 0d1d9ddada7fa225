"""Hostile and broken peers against a real member on real sockets, from both sides of a call.

After each burst the member answers a good call in time, nothing was executed twice, every message was counted under
one reason, and tasks, open files, threads and memory are what they were. `benchmarks/fuzz_wire.py` searches the same
ground for longer, guided by coverage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.actors.echo import Echo, Scores
from verst.runtime import codec
from verst.runtime.actors import (
    ActorError,
    CallRefused,
    CallTimeout,
    Member,
    MemberLost,
    RemoteError,
    StaleGeneration,
    create_keys,
    link,
    server,
    wire,
)
from verst.runtime.actors.actor import methods
from verst.runtime.actors.directory import MemberInfo, Registration
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.security import read_keys
from verst.runtime.actors.server import _Executed
from verst.runtime.actors.shared_memory import Reference
from verst.runtime.run_folder import RunFolder

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
        return [bytes(frame) for frame in wire.write(self.envelope(method, **changes), body)]

    def scale(self, /, **changes: Any) -> Frames:
        """A call with a struct, a map and an array, each by another caller: a wild number silences its own alone."""
        sender = f"{self._number:x}"
        return self.good(
            "scale", Scores("x", np.arange(20.0), {"k": 1}), 2, "", **{"sender": sender, **changes}
        )

    def send(self, burst: list[Frames]) -> None:
        for frames in burst:
            self.peer.send_multipart(frames)

    def answer(self, call: int, peer: zmq.Socket[bytes] | None = None) -> Frames:
        """The answer to one call; those to the burst are read and dropped."""
        peer = self.peer if peer is None else peer
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            if peer.poll(100):
                frames = peer.recv_multipart()
                if wire.read_envelope(frames).call == call:
                    return frames
        raise AssertionError(f"no answer to call {call} within {ANSWER_S} s")

    def check_alive(self) -> None:
        """A good call on the peer's connection is executed, once, and answered in time."""
        before = self.echo.calls
        frames = self.good("count")
        self.send([frames])
        assert wire.read_body(int, self.answer(self._number)) == before + 1

    def outcomes(self) -> int:
        """How many messages were counted so far."""
        return sum(n for reason, n in self.member.counts.items() if reason.startswith(OUTCOMES))

    def size(self) -> dict[str, int]:
        """What must not grow with bad messages."""

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        return {
            "tasks": self.run(tasks()),
            "files": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
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


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    made = Live(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[[], Live]]:
    """For tests that change the limits first."""
    made: list[Live] = []

    def make() -> Live:
        made.append(Live(tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()


# -- what a holder of the keys may send

_ENVELOPES: list[dict[str, Any]] = [
    {"protocol": 0},
    {"protocol": wire.PROTOCOL + 1},
    {"generation": -1},
    {"receiver": "another"},
    {"receiver": ""},
    {"kind": "reply"},
    {"kind": "error"},
    {"kind": "item"},
    {"timeout_s": float("inf")},
    {"timeout_s": -0.5},
    {"call": 0},
    {"call": -7},
    {"method": "_private"},
    {"method": "__class__"},
    {"method": "x" * 5000},
    {"sender_name": "x" * 5000},
]
_HEADERS = st.tuples(
    st.integers(-2, 4) | st.just(2**63),
    st.sampled_from(["<f8", "<f4", "|u1", "|O", "O", "V8", "<U4", "f4,f4", "(2,", "9" * 300, "", "i" * 300]),
    st.lists(st.sampled_from([0, 1, 2, 20, -1, 2**31, 2**62, 2**63]), max_size=4) | st.just([1] * 70),
)
_REFERENCES = st.builds(
    Reference,
    frame=st.integers(-1, 4),
    pid=st.sampled_from([os.getpid(), 1, 0, -1, 2**62]),
    fd=st.integers(-1, 12),
    inode=st.integers(0, 3),
    size=st.sampled_from([0, 160, 4096, -1, 2**62]),
    start=st.sampled_from([0, 1, -1, 2**62]),
    nbytes=st.sampled_from([0, 160, 4096, -1, 2**29]),
)


def lying(live: Live, header: tuple[int, str, list[int]]) -> Frames:
    """A good envelope, and a body whose array is not what it says."""
    array = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(header))
    frames = live.scale()
    frames[1] = msgspec.msgpack.encode([{"name": "x", "values": array, "counts": {}}, 2, ""])
    return frames


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


def bad(live: Live) -> st.SearchStrategy[list[Frames]]:
    """One kind of abuse: one message, or several that belong together."""
    return st.one_of(
        st.lists(st.binary(max_size=80), min_size=1, max_size=6).map(lambda frames: [frames]),
        st.deferred(lambda: cut(live.scale())).map(lambda frames: [frames]),
        st.deferred(lambda: damaged(live.scale())).map(lambda frames: [frames]),
        st.deferred(lambda: st.permutations(live.scale())).map(lambda frames: [list(frames)]),
        st.sampled_from(_ENVELOPES).map(lambda changes: [live.scale(**changes)]),
        st.integers(2, 5).map(lambda times: [live.scale()] * times),
        st.integers(100, 60_000).map(lambda depth: [[live.scale()[0], b"\x91" * depth]]),
        st.sampled_from(
            [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"]
        ).map(lambda bomb: [[live.scale()[0], bomb]]),
        st.sampled_from(["count", "fail", "sleep", "absent"]).map(
            lambda method: [[live.scale(method=method)[0], *live.scale()[1:]]]  # arguments of another method
        ),
        _HEADERS.map(lambda header: [lying(live, header)]),
        _REFERENCES.map(lambda reference: [live.scale(shared=(reference,))]),
        st.integers(2, 400).map(lambda count: [[*live.scale(), *[b""] * count]]),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_a_holder_of_the_keys_sends_the_member_answers_and_counts_it(
    live: Live, data: st.DataObject
) -> None:
    live.check_alive()
    size, before = live.size(), live.outcomes()
    burst = [
        frames for several in data.draw(st.lists(bad(live), min_size=1, max_size=12)) for frames in several
    ]
    live.send(burst)
    live.check_alive()
    assert live.outcomes() - before == len(burst) + 1  # the good call too
    live.settle(size)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(0, 2))
def test_replayed_and_reordered_calls_are_executed_at_most_once(
    live: Live, order: list[int], kind: int
) -> None:
    live.check_alive()
    sender, executed = f"replay-{live._number}", live.echo.calls
    before, duplicates = live.outcomes(), live.member.counts["duplicate"]
    other = live.connect(read_keys(live.folder).unlock)
    for n, call in enumerate(order):
        frames = live.good("count", sender=sender, call=call)
        (other if n % 3 < kind else live.peer).send_multipart(frames)  # on two connections as well
    live.wait_until(lambda: live.outcomes() >= before + len(order))
    other.close(linger=0)
    live.check_alive()
    assert live.member.counts["duplicate"] == duplicates + len(order) - len(set(order))
    assert live.echo.calls == executed + len(set(order)) + 1


@given(st.lists(st.integers(-3, 20_000) | st.sampled_from([2**63, 2**64 - 1]), max_size=60))
def test_no_number_is_ever_accepted_twice_and_rising_ones_always_are(calls: list[int]) -> None:
    executed, accepted, highest = _Executed(), set[int](), 0
    for call in calls:
        first = executed.first_time(call)
        assert not (first and (call in accepted or call < 1))
        assert first or call <= highest
        if first:
            accepted.add(call)
        elif call not in accepted and call > 0:
            assert highest - call >= server._REMEMBERED_CALLS
        highest = max(highest, call)
    assert executed._seen < 1 << server._REMEMBERED_CALLS


def test_nothing_grows_with_the_number_of_bad_messages(
    own: Callable[[], Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 of them in ten bursts, each as if by another caller: after the first two, RSS grows by 12 MiB at most."""
    monkeypatch.setattr(server, "_REMEMBERED_CALLERS", 1000)
    live = own()
    rng = random.Random(0)
    scale = live.scale()

    def burst(sender: str) -> list[Frames]:
        return [
            [rng.randbytes(20), rng.randbytes(200)],
            [live.scale(sender=sender)[0], b"\x91" * 2000],
            [live.scale(receiver=sender)[0], *scale[1:]],
            [live.scale(generation=-1)[0], *scale[1:]],
            [live.scale(sender=sender)[0], *scale[1:-1], scale[-1][:-8]],
        ]

    sizes, memory = [], []
    for n in range(10):
        live.send([frames for m in range(400) for frames in burst(f"{n}-{m}")])
        live.check_alive()
        sizes.append(live.size())
        memory.append(rss())
    live.settle(sizes[1])
    assert memory[-1] - memory[1] < GROWTH_BYTES, [m >> 10 for m in memory]
    assert len(live.member._server._executed) == 1000
    assert live.outcomes() == 10 * (5 * 400 + 1)


def test_messages_of_very_many_or_very_large_frames_are_refused(
    own: Callable[[], Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_BYTES", 4 << 20)
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1 << 20)
    live = own()
    live.check_alive()
    size, memory = live.size(), []
    for n in range(1, 5):
        live.send([[b""] * 60_000])  # frames beyond the bound are read off the socket and dropped
        live.wait_counted("malformed_frames", n)
        live.send([[*live.good("count"), *[bytes(1 << 20)] * 5]])
        live.wait_counted("malformed_size", n)
        live.send([[live.good("same", 1)[0], b"\xc5\xff\xff" + bytes(2 << 20)]])
        live.wait_counted("refused", n)
        other = live.connect(read_keys(live.folder).unlock)
        other.send_multipart(
            [live.good("count")[0], bytes(8 << 20)]
        )  # one frame: ZeroMQ drops the connection
        live.check_alive()
        other.close()
        memory.append(rss())
    assert live.echo.calls == 5  # ours
    live.settle(size)
    assert memory[-1] - memory[1] < GROWTH_BYTES, [m >> 10 for m in memory]


def test_what_nests_deeper_than_the_interpreter_recurses_is_refused_and_the_rest_comes_back(
    live: Live,
) -> None:
    answers = Counter[str]()
    for depth in (10, 100, 500, 900, 2_000, 20_000, 200_000):
        live.send([[msgspec.msgpack.encode(live.envelope("same")), b"\x91" * (depth + 1) + b"\x01"]])
        answers[wire.read_envelope(live.answer(live._number)).kind] += 1
    assert answers["reply"] >= 2
    assert answers["error"] >= 2
    live.check_alive()


# -- what a method may do

_TELLING = {"surrogate": r"a file named \\udcff", "unprintable": "cannot be told", "verbose": "x … x"}


@pytest.mark.parametrize("method", _TELLING)
def test_whatever_a_method_raises_its_caller_is_told(live: Live, method: str) -> None:
    async def work() -> None:
        async with await Member.join(live.folder, "driver", 0, None) as driver:
            with pytest.raises(RemoteError, match=_TELLING[method]) as caught:
                await getattr(driver.handle(Awkward, "echo", 0, timeout=ANSWER_S), method)()
            assert len(str(caught.value)) < 3 * server._MAX_TEXT

    live.run(work())


def test_a_result_that_nests_too_deeply_is_an_error_at_its_caller(live: Live) -> None:
    async def work() -> None:
        async with await Member.join(live.folder, "driver", 0, None) as driver:
            with pytest.raises((RemoteError, CallRefused)):
                await driver.handle(Awkward, "echo", 0, timeout=ANSWER_S).deep(100_000)

    live.run(work())


# -- who has no keys


def test_strangers_are_shut_out_and_leave_nothing_behind(
    own: Callable[[], Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CURVE, another key, silence, noise, and 32 MiB in a frame that never ends."""
    monkeypatch.setattr(link, "HANDSHAKE_MS", 1000)
    live = own()
    live.check_alive()
    size, memory = live.size(), rss()
    address = ("127.0.0.1", live.member.info.port)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    noise = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        random.Random(0).randbytes(3000),
        greeting,
        greeting + bytes(3000),
    ]
    open_ends = [socket.create_connection(address) for _ in range(60)]
    with contextlib.suppress(OSError):
        for n, connection in enumerate(open_ends[:-1]):
            connection.sendall(noise[n % len(noise)])
    open_ends[-1].settimeout(0.5)
    with contextlib.suppress(OSError):
        open_ends[-1].sendall(greeting + b"\x06" + struct.pack(">Q", 1 << 29) + bytes(32 << 20))

    def other_key(dealer: zmq.Socket[bytes]) -> None:
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = read_keys(live.folder).server_public.encode()

    def other_generation(dealer: zmq.Socket[bytes]) -> None:
        read_keys(live.folder, 7).unlock(dealer)

    dealers = [
        live.connect(prepare) for prepare in (lambda _: None, other_key, other_generation) for _ in range(5)
    ]
    for dealer in dealers:
        dealer.send_multipart(live.good("count"))
    live.check_alive()  # while all of them are connected
    live.wait_counted("refused_key", 5)
    live.wait_counted("refused_handshake", 60)
    assert live.echo.calls == 2
    for closable in (*dealers, *open_ends):
        closable.close()
    live.settle(size)
    live.check_alive()
    assert rss() - memory < GROWTH_BYTES


def test_each_generation_has_keys_of_its_own(live: Live) -> None:
    keys = [read_keys(live.folder, generation) for generation in (0, 0, 1, 10)]
    assert keys[0] == keys[1] == read_keys(live.folder)
    values = [value for each in keys[1:] for value in msgspec.structs.astuple(each)]
    assert len(set(values)) == len(values) == 12


# -- what a caller may be answered


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
        envelope = wire.read_envelope(message)
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
    frames = wire.write(msgspec.structs.replace(good, **changes), body)
    return [bytes(frame) for frame in frames]


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
    "no body": (lambda c: [reply(c, 1)[:1]], CallRefused),
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


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
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
    assert not [pending for each in driver._links.values() for pending in each._pending]


def test_a_stream_of_more_items_than_were_asked_for_is_refused(
    live: Live, driver: Member, impostor: Impostor
) -> None:
    async def take_slowly() -> None:
        async for _ in driver.handle(Awkward, "impostor", 0, timeout=5.0).numbers(1000):
            await asyncio.sleep(0.01)

    impostor.answers = lambda c: [reply(c, n, "item") for n in range(1000)]
    with pytest.raises(CallRefused, match="not asked for"):
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


# -- the decoders by themselves


def test_two_arrays_may_not_claim_one_buffer() -> None:
    array = msgspec.msgpack.Ext(1, msgspec.msgpack.encode((1, "<f4", [2])))
    body = msgspec.msgpack.encode([array, array])
    with pytest.raises(msgspec.ValidationError, match="named twice"):
        codec.decode(list[np.ndarray], [body, bytes(8)])
    assert len(codec.decode(list[np.ndarray], [msgspec.msgpack.encode([array]), bytes(8)])) == 1


def test_what_is_too_large_besides_its_arrays_is_refused_where_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "MAX_BODY_BYTES", 1000)
    call = wire.Envelope(wire.PROTOCOL, "call", 1, 0, "a", "driver-0", "b", "same")
    with pytest.raises(ValueError, match="put large data into arrays"):
        wire.write(call, [bytes(2000)])
    assert len(wire.write(call, [np.zeros(2000)])) == 3
