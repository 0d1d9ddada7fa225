"""Large arrays on one node: the same values, not through a socket, and nothing left behind or believed blindly."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator

import msgspec
import numpy as np
import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.actors.test_calls import joined
from verst.runtime.actors import Actor, CallTimeout, Member, memory_pool, server, shared_array, wire
from verst.runtime.actors.memory_pool import POOL, Pool
from verst.runtime.actors.shared_memory import LEAST_BYTES, Held, Reference, get, node_key, put
from verst.runtime.run.folder import RunFolder

LARGE = 4 * LEAST_BYTES


class Store(Actor):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []

    async def keep(self, array: np.ndarray) -> int:
        self.kept.append(array)
        return array.nbytes

    async def give(self) -> np.ndarray:
        return self.kept[-1]

    async def each(self) -> AsyncIterator[np.ndarray]:
        for array in self.kept:
            yield array


def descriptors() -> list[int]:
    """This process's open memfds, by inode."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if "memfd:verst" in os.readlink(f"/proc/self/fd/{name}"):
                found.append(os.stat(f"/proc/self/fd/{name}").st_ino)
        except FileNotFoundError:
            continue  # the listing's own
    return found


async def none_left() -> None:
    for _ in range(200):
        gc.collect()
        POOL.tidy(0.0)
        if not descriptors():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(descriptors())


def frames_seen(member: Member) -> list[int]:
    """Notes the bytes of each message that reaches the member's socket."""
    sizes: list[int] = []
    inner = member._server._socket._on_message

    def note(frames: list[memoryview]) -> None:
        sizes.append(sum(len(memoryview(f).cast("B")) for f in frames))
        inner(frames)  # type: ignore[arg-type]

    member._server._socket._on_message = note  # type: ignore[method-assign]
    return sizes


@pytest.mark.parametrize("own", [False, True])
def test_arrays_cross_both_ways_without_the_socket_and_outlive_the_call(folder: RunFolder, own: bool) -> None:
    async def check() -> None:
        store = Store()
        async with joined(folder, ("store", 0, store), ("driver", 0, None)) as (member, driver):
            sizes = frames_seen(member)
            handle = driver.handle(Store, "store", 0)
            expected = []
            for i in range(3):
                array = shared_array((LARGE // 4,), np.float32) if own else np.empty(LARGE // 4, np.float32)
                array[:] = np.random.default_rng(i).random(LARGE // 4, np.float32)
                expected.append(array.copy())
                assert await handle.keep(array) == LARGE
                del array
            assert max(sizes) < 1000
            for kept, right in zip(store.kept, expected, strict=True):
                np.testing.assert_array_equal(kept, right)
                assert not kept.flags.writeable
            back = await handle.give()
            np.testing.assert_array_equal(back, expected[-1])
            for got, right in zip([a async for a in handle.each()], expected, strict=True):
                np.testing.assert_array_equal(got, right)
            del back, got, kept
            store.kept.clear()
            await none_left()

    within(30, check)


def test_each_message_of_a_long_stream_has_its_own_time_to_be_mapped(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_HELD_S", 0.6)
    envelope = wire.Envelope(wire.PROTOCOL, "call", 1, 0, "caller", "caller-0", "")

    def hold(member: Member) -> Held:
        held = Held()
        put([b"", b"", memoryview(np.ones(LEAST_BYTES, np.uint8))], held)
        member._server._hold(envelope, held)
        return held

    async def check() -> None:
        async with joined(folder, ("store", 0, Store())) as (member,):
            first = hold(member)
            member._server._release("caller", 1)  # mapped
            assert not first
            await asyncio.sleep(0.4)
            second = hold(member)
            await asyncio.sleep(0.4)  # the first one's time is over
            assert second
            await asyncio.sleep(0.4)
            assert not second
            assert not member._server._held

    within(10, check)


def test_a_part_of_a_shared_array_is_that_part(folder: RunFolder) -> None:
    array = shared_array((8, LEAST_BYTES), np.uint8)
    array[:] = np.arange(8)[:, None]
    held = Held()
    frames, references = put([b"", b"", memoryview(array[2:5].reshape(-1))], held)
    assert references[0].start == 2 * LEAST_BYTES
    whole = np.frombuffer(get(frames, references)[2], np.uint8)
    assert (whole.reshape(3, -1) == np.array([[2], [3], [4]])).all()


def test_to_another_node_arrays_travel_as_frames(folder: RunFolder) -> None:
    async def check() -> None:
        store = Store()
        async with joined(folder, ("store", 0, store), ("driver", 0, None)) as (member, driver):
            sizes = frames_seen(member)
            driver._links.me = msgspec.structs.replace(driver._links.me, node="elsewhere")
            array = np.arange(LARGE // 8)
            handle = driver.handle(Store, "store", 0)
            assert await handle.keep(array) == LARGE
            assert max(sizes) > LARGE
            np.testing.assert_array_equal(await handle.give(), array)

    within(30, check)


def _fields(struct: object) -> list[object]:
    return [getattr(struct, name) for name in struct.__struct_fields__]  # type: ignore[attr-defined]


def test_memory_is_used_again_once_its_receiver_has_let_go_of_it(folder: RunFolder) -> None:
    async def check() -> None:
        store = Store()
        async with joined(folder, ("store", 0, store), ("driver", 0, None)) as (_, driver):
            handle = driver.handle(Store, "store", 0)
            for n in range(3):  # kept: each has memory of its own, and never changes
                assert await handle.keep(np.full(LARGE // 4, n, np.float32)) == LARGE
            assert [float(array.max()) for array in store.kept] == [0.0, 1.0, 2.0]
            before = set(descriptors())
            assert len(before) == 3
            last = store.kept.pop()
            for n in range(3, 9):  # not kept, but for one
                await handle.keep(np.full(LARGE // 4, n, np.float32))
                del store.kept[2:]
            assert float(last.max()) == 2.0
            assert len(set(descriptors())) <= len(before) + 2  # the present and the last of them
            assert [float(array.max()) for array in store.kept] == [0.0, 1.0]
            store.kept.clear()
            del last
        await none_left()

    within(30, check)


def test_memory_that_might_still_be_mapped_is_not_used_again(folder: RunFolder) -> None:
    """A caller that gives up does not know whether its message will yet be read."""

    class Deaf(Actor, concurrency=1):
        async def keep(self, array: np.ndarray) -> int:
            await asyncio.sleep(60)
            return 0

    async def check() -> None:
        POOL.tidy(0.0)
        async with joined(folder, ("store", 0, Deaf()), ("driver", 0, None)) as (_, driver):
            with pytest.raises(CallTimeout):
                await driver.handle(Deaf, "store", 0, timeout=0.2).keep(np.ones(LARGE))
            assert not POOL._kept

    within(30, check)


def test_what_is_kept_has_a_bound_in_time_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    monkeypatch.setattr(memory_pool, "MOST_KEPT_BYTES", 3 * LEAST_BYTES)
    blocks = [pool.take(LEAST_BYTES) for _ in range(4)]
    for block in blocks:
        assert block.is_free()
        pool.give_back(block)
    assert pool._kept == blocks[1:]
    held = os.open(f"/proc/self/fd/{blocks[3].fd}", os.O_RDONLY)  # as a receiver does
    assert not blocks[3].is_free()
    assert pool.take(LEAST_BYTES) is blocks[2]
    os.close(held)
    assert pool.take(LEAST_BYTES // 2) is blocks[3]
    assert pool.take(8 * LEAST_BYTES) not in blocks  # far too small
    pool.tidy(60.0)
    assert pool._kept == [blocks[1]]
    pool.tidy(0.0)
    assert not pool._kept


def test_references_to_what_is_not_there_are_refused() -> None:
    held = Held()
    frames, (good,) = put([b"", b"", memoryview(np.ones(LEAST_BYTES, np.uint8))], held)
    fields = dict(zip(good.__struct_fields__, _fields(good), strict=True))

    def refused(match: str, **changes: int) -> None:
        with pytest.raises(ValueError, match=match):
            get(frames, [Reference(**fields | changes)])

    refused("not an empty frame", frame=0)
    refused("not an empty frame", frame=9)
    refused("cannot be opened", fd=100_000)
    refused("cannot be opened", pid=2**30)
    refused("is impossible", nbytes=0)
    refused("is impossible", start=-1)
    refused("other shared memory", inode=fields["inode"] + 1)
    refused("other shared memory", size=fields["size"] * 2)
    unsealed = os.memfd_create("verst", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, 4096)
    inode = os.fstat(unsealed).st_ino
    refused("may still shrink", fd=unsealed, inode=inode, size=4096, nbytes=4096)
    os.close(unsealed)
    refused("beyond the end", start=1)
    with tempfile.TemporaryFile() as file:  # a file of ours is not shared memory
        file.truncate(4096)
        about = os.fstat(file.fileno())
        refused(
            "is not shared memory",
            fd=file.fileno(),
            inode=about.st_ino,
            size=about.st_size,
            nbytes=about.st_size,
        )
    held.release()
    refused("cannot be opened|other shared memory|is not shared memory")


def test_the_key_of_a_node_is_the_same_for_all_its_processes() -> None:
    assert node_key() == node_key.__wrapped__()
    assert len(node_key()) == 16
