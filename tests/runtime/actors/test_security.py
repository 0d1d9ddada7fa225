"""Who cannot call: no key, another key, another's files; and what a hostile peer cannot break."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
from collections.abc import Awaitable, Callable

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo, Scores
from verst.runtime.actors import Member, MemberLost, create_keys, wire
from verst.runtime.actors.actor import methods
from verst.runtime.actors.host_address import resolve_host
from verst.runtime.actors.security import Keys, read_keys
from verst.runtime.actors.zmq_context import SocketContext
from verst.runtime.run.folder import RunFolder


def envelope(member: Member, call: int, method: str = "count", **changes: object) -> wire.Envelope:
    """As a member of the run would write it."""
    info = member.info
    made = wire.Envelope(
        wire.PROTOCOL, "call", call, info.generation, "feed", "driver-9", info.incarnation, method, 10.0
    )
    return msgspec.structs.replace(made, **changes)


def arguments(method: str, *values: object) -> msgspec.Struct:
    return methods(Echo)[method].arguments(*values)


class Peer:
    """A bare DEALER socket: what another program would use."""

    def __init__(self, member: Member, prepare: Callable[[zmq.Socket[bytes]], None]) -> None:
        self.context = SocketContext()
        self.socket = self.context.socket(zmq.DEALER)
        prepare(self.socket)
        self.socket.connect(member.info.endpoint)

    def send(self, frames: list[bytes]) -> None:
        with contextlib.suppress(zmq.Again):  # it has been shut out already
            self.socket.send_multipart(frames, zmq.NOBLOCK)

    async def receive(self, seconds: float) -> list[bytes] | None:
        """The next answer, or None."""
        for _ in range(int(seconds / 0.02)):
            if self.socket.poll(0):
                return self.socket.recv_multipart()
            await asyncio.sleep(0.02)
        return None

    def close(self) -> None:
        self.context.destroy(linger=0)


def with_peer(folder: RunFolder, prepare, test: Callable[[Member, Echo, Peer], Awaitable[None]]) -> None:
    """Runs `test` against a live actor with a bare peer, then shows that the actor still answers."""

    async def work() -> None:
        echo = Echo()
        member = await Member.join(folder, "echo", 0, echo)
        driver = await Member.join(folder, "driver", 0, None)
        peer = Peer(member, prepare)
        try:
            await test(member, echo, peer)
            calls = echo.calls
            assert await driver.handle(Echo, "echo", 0).count() == calls + 1
        finally:
            peer.close()
            await driver.leave()
            await member.leave()

    within(60, work)


async def counted(member: Member, reason: str, count: int) -> None:
    """Waits, at most 20 s, until the member has counted so many."""
    for _ in range(1000):
        if member.counts[reason] >= count:
            break
        await asyncio.sleep(0.02)
    assert member.counts[reason] == count


def no_key(_: zmq.Socket[bytes]) -> None:
    """A plain socket."""


def test_folders_and_keys_are_the_owners_alone(folder: RunFolder) -> None:
    for path in (folder.root, folder.keys, folder.members):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert stat.S_IMODE((folder.keys / "curve.json").stat().st_mode) == 0o600
    assert [path.name for path in folder.keys.iterdir()] == ["curve.json"]

    async def work() -> None:
        member = await Member.join(folder, "echo", 0, None)
        assert stat.S_IMODE((folder.members / "echo-0.json").stat().st_mode) == 0o600
        await member.leave()

    within(10, work)


def test_keys_are_made_once(folder: RunFolder) -> None:
    before = read_keys(folder)
    create_keys(folder)
    assert read_keys(folder) == before


def test_keys_that_others_may_read_are_refused(folder: RunFolder) -> None:
    os.chmod(folder.keys / "curve.json", 0o640)
    with pytest.raises(PermissionError, match="has mode 0640: others may read it"):
        read_keys(folder)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_member_never_listens_on_every_interface(host: str) -> None:
    with pytest.raises(ValueError, match="listens on every interface"):
        resolve_host(host)


def test_members_meet_over_ipv6(folder: RunFolder) -> None:
    async def work() -> None:
        member = await Member.join(folder, "echo", 0, Echo(), host="::1")
        assert member.info.endpoint == f"tcp://[::1]:{member.info.port}"
        caller = await Member.join(folder, "driver", 0, None, host="127.0.0.1")
        assert await caller.handle(Echo, "echo", 0, timeout=10).count() == 1
        await asyncio.gather(caller.leave(), member.leave())

    within(20, work)


def test_the_port_is_bound_on_the_given_address_only(folder: RunFolder) -> None:
    async def work() -> None:
        member = await Member.join(folder, "echo", 0, None, host="127.0.0.2")
        assert member.info.endpoint == f"tcp://127.0.0.2:{member.info.port}"
        with pytest.raises(ConnectionRefusedError), socket.socket() as other:
            other.connect(("127.0.0.1", member.info.port))
        await member.leave()

    within(10, work)


def test_without_a_key_nothing_is_executed(folder: RunFolder) -> None:
    async def test(member: Member, echo: Echo, peer: Peer) -> None:
        peer.send(wire.write(envelope(member, 1), wire.encode(arguments("count"))))  # type: ignore[arg-type]
        assert await peer.receive(1.0) is None
        assert echo.calls == 0
        assert member.counts["calls"] == 0

    with_peer(folder, no_key, test)


def test_with_another_client_key_nothing_is_executed(folder: RunFolder) -> None:
    """The server's public key is known to the attacker; the client key is self-made."""
    run_keys = read_keys(folder)

    def prepare(sock: zmq.Socket[bytes]) -> None:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        Keys(run_keys.server_public, "", public, secret).unlock(sock)

    async def test(member: Member, echo: Echo, peer: Peer) -> None:
        peer.send(wire.write(envelope(member, 1), wire.encode(arguments("count"))))  # type: ignore[arg-type]
        assert await peer.receive(1.0) is None
        assert echo.calls == 0
        assert member.counts["refused_key"] >= 1

    with_peer(folder, prepare, test)


def test_a_member_of_another_run_is_told_at_once(folder: RunFolder, tmp_path) -> None:
    other = RunFolder(tmp_path / "other")
    other.create()
    other.start_generation()
    create_keys(other)

    async def work() -> None:
        echo = Echo()
        member = await Member.join(folder, "echo", 0, echo)
        stranger = await Member.join(other, "driver", 0, None)
        (other.members / "echo-0.json").write_bytes((folder.members / "echo-0.json").read_bytes())
        with pytest.raises(MemberLost, match=r"handshake failed|connection ended"):
            await stranger.handle(Echo, "echo", 0, timeout=10).count()
        assert echo.calls == 0
        await stranger.leave()
        await member.leave()

    within(20, work)


def test_a_repeated_call_is_executed_once(folder: RunFolder) -> None:
    async def test(member: Member, echo: Echo, peer: Peer) -> None:
        frames = wire.write(envelope(member, 7), wire.encode(arguments("count")))
        for _ in range(3):
            peer.send(frames)  # type: ignore[arg-type]
        answer = await peer.receive(5.0)
        assert answer is not None
        [(_, message)] = wire.read(answer)
        assert wire.read_body(int, message) == 1
        assert await peer.receive(0.5) is None
        assert (echo.calls, member.counts["duplicate"]) == (1, 2)
        again = Peer(member, read_keys(folder).unlock)  # on another connection neither
        again.send(frames)  # type: ignore[arg-type]
        await counted(member, "duplicate", 3)
        again.close()
        assert (echo.calls, member.counts["duplicate"]) == (1, 3)

    with_peer(folder, read_keys(folder).unlock, test)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": 99}, "malformed_protocol"),
        ({"generation": 5}, "stale"),
        ({"receiver": "another"}, "not_here"),
        ({"kind": "reply"}, "unexpected_kind"),
        ({"timeout_s": float("nan")}, "malformed_timeout"),
        ({"timeout_s": -1.0}, "malformed_timeout"),
        ({"method": "_private"}, "refused"),
        ({"method": "__init__"}, "refused"),
        ({"method": "x" * 2000}, "malformed_envelope"),
    ],
)
def test_a_message_that_is_not_for_us_is_counted_by_reason_and_not_executed(
    folder: RunFolder, changes: dict[str, object], reason: str
) -> None:
    if reason == "stale":
        return _test_newer_generation(folder)

    async def test(member: Member, echo: Echo, peer: Peer) -> None:
        peer.send(wire.write(envelope(member, 1, **changes), wire.encode(arguments("count"))))  # type: ignore[arg-type]
        await counted(member, reason, 1)
        assert echo.calls == 0

    with_peer(folder, read_keys(folder).unlock, test)


def _test_newer_generation(folder: RunFolder) -> None:
    """A message of a later generation makes the member look: it leaves if the folder agrees."""

    async def work() -> None:
        echo = Echo()
        member = await Member.join(folder, "echo", 0, echo)
        peer = Peer(member, read_keys(folder).unlock)
        peer.send(wire.write(envelope(member, 1, generation=5), wire.encode(arguments("count"))))  # type: ignore[arg-type]
        await asyncio.sleep(0.3)
        assert folder.generation == 0
        assert member.counts["stale"] == 1
        folder.start_generation()
        peer.send(wire.write(envelope(member, 2, generation=1), wire.encode(arguments("count"))))  # type: ignore[arg-type]
        assert "it is of life 0, the run of life 1" in str(await member.wait_left())
        assert (echo.calls, member.counts["stale"]) == (0, 2)
        peer.close()

    within(20, work)


def test_a_burst_of_random_and_truncated_frames_leaves_the_actor_answering(folder: RunFolder) -> None:
    async def test(member: Member, echo: Echo, peer: Peer) -> None:
        rng = random.Random(0)
        body = arguments("scale", Scores("x", np.arange(100)), 2, "")
        good = [bytes(frame) for frame in wire.write(envelope(member, 1, "scale"), wire.encode(body))]
        for n in range(3000):
            frames = list(good)
            match n % 4:
                case 0:
                    frames = [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 6))]
                case 1:
                    cut = rng.randrange(len(frames))
                    frames[cut] = frames[cut][: rng.randrange(len(frames[cut]))]
                case 2:
                    spot = rng.randrange(len(frames) - 1)
                    damaged = bytearray(frames[spot])
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
                    frames[spot] = bytes(damaged)
                case 3:
                    frames = frames[: rng.randrange(1, len(frames))]
            peer.send(frames)
            if n % 100 == 0:
                await asyncio.sleep(0)
        peer.send([b""] * (wire.MAX_FRAMES + 10))
        await counted(member, "malformed_frames", 1)
        assert member.counts["malformed_envelope"] > 1000

    with_peer(folder, read_keys(folder).unlock, test)


FRAMES = st.lists(st.binary(max_size=64), max_size=5)
GOOD = [bytes(frame) for frame in wire.write(
    wire.Envelope(wire.PROTOCOL, "call", 1, 0, "a", "driver-0", "b", "scale", 1.0),
    wire.encode(arguments("scale", Scores("x", np.arange(3.0), {"k": 1}), 2, "")),
)]  # fmt: skip


def read_all(frames: list[bytes]) -> None:
    """Both decoders, which may raise Malformed and nothing else."""
    for read in (
        lambda: wire.read(frames),
        lambda: wire.read_body(methods(Echo)["scale"].arguments, frames),
        lambda: wire.read_body(object, frames),
        lambda: wire.read_body(np.ndarray, frames),
    ):
        try:
            read()
        except wire.Malformed:
            continue


@settings(max_examples=400)
@given(FRAMES)
def test_random_frames_are_malformed_and_nothing_worse(frames: list[bytes]) -> None:
    read_all(frames)


@settings(max_examples=600)
@given(st.data())
def test_damaged_frames_are_malformed_and_nothing_worse(data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in GOOD]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        if not frame:
            continue
        where = data.draw(st.integers(0, len(frame) - 1))
        if data.draw(st.booleans()):
            frame[where] = data.draw(st.integers(0, 255))
        else:
            del frame[where:]
    read_all([bytes(frame) for frame in frames])


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xa3\xff\xff\xff",
    ],
    ids=["depth", "array of 4 billion", "map of 4 billion", "4 GiB of bytes", "bad UTF-8"],
)
def test_bombs_are_malformed(body: bytes) -> None:
    for type_ in (object, list[int], Scores):
        with pytest.raises(wire.Malformed):
            wire.read_body(type_, [GOOD[0], body])


@pytest.mark.parametrize("dtype", ["O", "(2,", "V8", "<M8[s]", "f99", "(1000000000000,)f4", "f4,f4"])
@pytest.mark.parametrize("shape", [[4], [-1], [0, 1 << 62, 1 << 62], [1] * 70, [1 << 40]])
def test_hostile_array_headers_are_malformed(dtype: str, shape: list[int]) -> None:
    for kind in (dtype, "<f4"):
        if (kind, shape) == ("<f4", [4]):
            continue
        header = msgspec.msgpack.encode([1, kind, shape])
        body = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, header))
        with pytest.raises(wire.Malformed):
            wire.read_body(np.ndarray, [GOOD[0], body, b"1234" * 4])
