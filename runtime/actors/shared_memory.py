"""Passes large arrays between two processes of one node through anonymous memory, not the network.

An array of `LEAST_BYTES` or more is copied into a memfd of fixed size, and the message only names its
descriptor. The receiver maps it through /proc, read-only. No name can collide or be left behind: the memory
is gone when both sides have let go of it. An array made by `shared_array` is in such memory already and is
not copied at all. Other memory is kept for a while and used again when its receiver has let go of it
(`memory_pool.py`).

The receiver trusts nothing. It maps only memory that can no longer shrink (else a read could be a SIGBUS) and
whose inode and size are those in the message. If two processes do not see each other's /proc (containers with
process namespaces of their own), their `node_key`s differ, and arrays travel as ZeroMQ frames.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import math
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from verst.runtime.actors.codec import Buffer
from verst.runtime.actors.memory_pool import NAME, POOL, Block, new_memory

if TYPE_CHECKING:
    import numpy as np

LEAST_BYTES = 1 << 20  # smaller arrays are copied through the socket just as fast
MOST_IN_A_MESSAGE = 16  # arrays in shared memory; further ones travel as frames


class Reference(msgspec.Struct, array_like=True, frozen=True):
    """Where the bytes of an empty frame are: `nbytes` from `start` of a process's memory."""

    frame: int
    pid: int
    fd: int
    inode: int
    size: int  # of the whole memory
    start: int
    nbytes: int


class Held:
    """Keeps the memory that a message refers to until the receiver has mapped it."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._arrays: list[object] = []

    def keep(self, block: Block) -> None:
        """Keeps a block of the pool until `release`."""
        self._blocks.append(block)

    def keep_array(self, frame: Buffer) -> None:
        """Keeps an array of `shared_array`, which closes its own memory when it is no longer used."""
        self._arrays.append(frame)

    def __bool__(self) -> bool:
        return bool(self._blocks or self._arrays)

    def release(self, answered: bool = False) -> None:
        """Lets go of the memory.

        With `answered`, the receiver has mapped it or never will, so the pool may use it again. Otherwise the
        receiver might still map it, so it is closed and not used for anything else.
        """
        while self._blocks:
            block = self._blocks.pop()
            if answered:
                POOL.give_back(block)
            else:
                block.close()
        self._arrays.clear()

    def __del__(self) -> None:
        self.release()


@functools.cache
def node_key() -> str:
    """A key that is the same in two processes if, and only if, they see each other's /proc entries."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getuid()}".encode()).hexdigest()[
        :16
    ]


def shared_array(shape: int | tuple[int, ...], dtype: np.typing.DTypeLike = "float32") -> np.ndarray:
    """Makes an array of zeros that can be sent to other processes of the node without a copy.

    Like any array, it must not be changed once it has been sent: the receivers see the same memory.
    """
    import numpy as np

    shape = (shape,) if isinstance(shape, int) else shape
    dtype = np.dtype(dtype)
    size = max(1, math.prod(shape) * dtype.itemsize)
    fd = new_memory(size)
    mapped = mmap.mmap(fd, size)
    array = np.ndarray(shape, dtype, mapped)
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    _regions[start] = (fd, size)
    weakref.finalize(mapped, _forget, start)
    return array


def put(frames: Sequence[Buffer], held: Held) -> tuple[list[Buffer], tuple[Reference, ...]]:
    """Moves a message's large frames into shared memory, which `held` keeps.

    Returns the frames, with the large ones empty, and references to their memory.
    """
    left = list(frames)
    references: list[Reference] = []
    for place, frame in enumerate(frames):
        if place < 2 or len(references) == MOST_IN_A_MESSAGE or not isinstance(frame, memoryview):
            continue
        if frame.nbytes >= LEAST_BYTES:
            references.append(_own(place, frame, held) or _copied(place, frame, held))
            left[place] = b""
    return left, tuple(references)


def get(frames: Sequence[Buffer], references: Sequence[Reference]) -> list[Buffer]:
    """Fills the empty frames with the memory that the references name. Raises ValueError if it cannot."""
    whole = list(frames)
    for reference in references:
        if not 2 <= reference.frame < len(whole) or len(whole[reference.frame]):
            raise ValueError(f"shared memory for frame {reference.frame}, which is not an empty frame")
        whole[reference.frame] = _mapped(reference)
    return whole


_regions: dict[int, tuple[int, int]] = {}  # by address: descriptor and size of each `shared_array`


def _forget(start: int) -> None:
    os.close(_regions.pop(start)[0])


def _own(place: int, frame: memoryview, held: Held) -> Reference | None:
    """A reference to the `shared_array` that the frame is part of, or None if it is part of none."""
    if not _regions:
        return None
    import numpy as np

    address = np.frombuffer(frame, np.uint8).ctypes.data
    for start, (fd, size) in _regions.items():
        if start <= address and address + frame.nbytes <= start + size:
            held.keep_array(frame)
            inode = os.fstat(fd).st_ino
            return Reference(place, os.getpid(), fd, inode, size, address - start, frame.nbytes)
    return None


def _copied(place: int, frame: memoryview, held: Held) -> Reference:
    block = POOL.take(frame.nbytes)
    held.keep(block)
    block.write(frame)
    return Reference(place, os.getpid(), block.fd, block.inode, block.size, 0, frame.nbytes)


def _mapped(reference: Reference) -> memoryview:
    """Maps the memory of a reference. Raises ValueError unless it is memory that `put` could have named."""
    if min(reference.pid, reference.fd, reference.start, reference.nbytes - 1) < 0:
        raise ValueError(f"shared memory {reference} is impossible: no number may be negative, nbytes not 0")
    if reference.start + reference.nbytes > reference.size:
        raise ValueError("the message names bytes beyond the end of the shared memory")
    path = f"/proc/{reference.pid}/fd/{reference.fd}"
    try:
        # Checked before opening: to open something else might have an effect.
        if not os.readlink(path).startswith(f"/memfd:{NAME} "):
            raise ValueError(f"{path} is not shared memory of Verst")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return _checked(fd, reference)
        finally:
            os.close(fd)
    except OSError as error:
        raise ValueError(f"shared memory of process {reference.pid} cannot be opened: {error}") from error


def _checked(fd: int, reference: Reference) -> memoryview:
    status = os.fstat(fd)
    if (status.st_ino, status.st_size) != (reference.inode, reference.size):
        raise ValueError(f"process {reference.pid} has other shared memory than the message says")
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("the shared memory may still shrink")
    mapped = mmap.mmap(fd, reference.size, prot=mmap.PROT_READ)
    return memoryview(mapped)[reference.start : reference.start + reference.nbytes]
