"""The messages between a pool of hook processes (`pool.py`) and each of its processes (`pool_process.py`).

They pass through a pair of connected sockets, as frames: how many buffers, their lengths, and the buffers of
`actors/codec.py`.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec

from verst.runtime.actors.codec import decode, encode
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import Kind
from verst.runtime.hooks.limits import Limits
from verst.runtime.hooks.score import Score

_MOST_BYTES = 1 << 30


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is started for; it gets this as JSON, as an argument."""

    what: str  # for messages: "reward function"
    path: str
    timeout_s: float
    memory_bytes: int
    parent: int
    socket: int  # file descriptors
    keywords: dict[str, Any] = {}  # of every call
    stacks: int  # where the process's stack is written when it is ended or dies


class Call(msgspec.Struct, tag=True, array_like=True):
    """Call the hook with an answer, or with all answers to a prompt."""

    id: int
    place: str
    argument: Answer | list[Answer]


class Ready(msgspec.Struct, tag=True, array_like=True):
    """The hook is loaded."""

    is_async: bool
    limits: Limits


class Began(msgspec.Struct, tag=True, array_like=True):
    """The function has been called."""

    id: int


class Returned(msgspec.Struct, tag=True, array_like=True):
    """The checked value: of an answer, or of each of a list."""

    id: int
    value: Score | list[Score]


class Failed(msgspec.Struct, tag=True, array_like=True):
    """The hook failed, or with `id` -1: it cannot be loaded."""

    id: int
    message: str
    frames: str
    kind: Kind


Reply = Ready | Began | Returned | Failed


async def receive[T](reader: asyncio.StreamReader, type_: type[T] | Any) -> T:
    """Reads one message. Raises IncompleteReadError or OSError when the other side has gone."""
    (count,) = struct.unpack("<I", await reader.readexactly(4))
    sizes = struct.unpack(f"<{count}Q", await reader.readexactly(8 * count))
    if sum(sizes) > _MOST_BYTES:
        raise ValueError(f"a message of {sum(sizes)} bytes")
    return decode(type_, [await reader.readexactly(size) for size in sizes])


def send(writer: asyncio.StreamWriter, message: Any) -> None:
    """Writes one message. Raises TypeError for values that cannot be sent."""
    buffers = [memoryview(buffer).cast("B") for buffer in encode(message)]
    sizes = [buffer.nbytes for buffer in buffers]
    writer.write(struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
    writer.writelines(buffers)
