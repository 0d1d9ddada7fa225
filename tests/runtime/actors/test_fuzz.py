"""Hostile and broken callers against a real member on real sockets (`test_fuzz_callers.py` has the other side).

After each burst the member answers a good call in time, nothing was executed twice, every message was counted under
one reason, and tasks, open files, threads and memory are what they were. `benchmarks/fuzz_wire.py` searches the same
ground for longer, guided by coverage.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runtime.actors.live_member import (
    ANSWER_S,
    GROWTH_BYTES,
    Awkward,
    Frames,
    Live,
    cut,
    damaged,
    rss,
)
from verst.runtime.actors import (
    CallRefused,
    Member,
    RemoteError,
    codec,
    connection,
    executed,
    fault,
    wire,
)
from verst.runtime.actors.executed import Executed
from verst.runtime.actors.security import read_keys
from verst.runtime.actors.shared_memory import Reference

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


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
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


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
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
    of_caller, accepted, highest = Executed(), set[int](), 0
    for call in calls:
        first = of_caller.first_time(call)
        assert not (first and (call in accepted or call < 1))
        assert first or call <= highest
        if first:
            accepted.add(call)
        elif call not in accepted and call > 0:
            assert highest - call >= executed.REMEMBERED_CALLS
        highest = max(highest, call)
    assert of_caller._seen < 1 << executed.REMEMBERED_CALLS


def test_nothing_grows_with_the_number_of_bad_messages(
    own: Callable[[], Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 of them in ten bursts, each as if by another caller: after the first two, RSS grows by 12 MiB at most."""
    monkeypatch.setattr(executed, "REMEMBERED_CALLERS", 1000)
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
        answers[live.answer(live._number)[0].kind] += 1
    assert answers["reply"] >= 2
    assert answers["error"] >= 2
    live.check_alive()


# -- what a method may do

_TELLING = {"surrogate": r"a file named \\udcff", "unprintable": "no message: str", "verbose": "x … x"}


@pytest.mark.parametrize("method", _TELLING)
def test_whatever_a_method_raises_its_caller_is_told(live: Live, method: str) -> None:
    async def work() -> None:
        async with await Member.join(live.folder, "driver", 0, None) as driver:
            with pytest.raises(RemoteError, match=_TELLING[method]) as caught:
                await getattr(driver.handle(Awkward, "echo", 0, timeout=ANSWER_S), method)()
            assert len(str(caught.value)) < 3 * fault.MAX_TEXT

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
    monkeypatch.setattr(connection, "HANDSHAKE_MS", 1000)
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
        for n, opened in enumerate(open_ends[:-1]):
            opened.sendall(noise[n % len(noise)])
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
        wire.encode([bytes(5000)])
    assert len(wire.write(call, wire.encode([np.zeros(5000)]))) == 3
