"""An append-only, checksummed journal of prompt groups, with every group that a store shard acknowledged.

A journal is a folder of segment files. A record is

    magic "VJ01" | crc32 of the rest | buffer count n | n buffer lengths | the buffers (`encode_group`)

with little-endian u32 for the crc and the count, and u64 for the lengths. A crash can leave one torn record
at the end of a segment, where reading stops. Nothing is ever written behind a torn record, because every life
of a run writes its own segments, and a failed write ends its segment. A segment is deleted once all its
groups are discarded, or moved to `kept/` where the recipe keeps them (`recording.py`).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from verst.runtime.actors.codec import Buffer
from verst.runtime.messages.sample import Group, decode_group, encode_group
from verst.sync.files.durable import flush, naming, write_whole

_MAGIC = b"VJ01"
_HEAD = struct.Struct("<4sII")
KEPT = "kept"  # the folder for segments whose groups are all discarded
_SEGMENT_BYTES = 256 << 20
_MAX_BUFFERS = 1 << 20


class Place(NamedTuple):
    """Where a group's record is: `offset` is in bytes."""

    segment: Path
    offset: int


class Journal:
    """One shard's journal. Single writer; not thread-safe.

    Args:
        folder: the journal's folder, which is made if it does not exist.
        generation: the life of the run that writes. It is part of the segments' names.
        keep: keep the segments of discarded groups.
    """

    def __init__(self, folder: Path, generation: int, keep: bool = False) -> None:
        self._folder = folder
        self._keep = keep
        self._generation = generation
        self._places: dict[int, Place] = {}
        self._live: dict[Path, set[int]] = {}  # segment -> groups in it that are not discarded
        self._segment: Path | None = None
        self._fd = -1
        self.torn: list[str] = []  # a message for each segment that ends in a torn record
        folder.mkdir(parents=True, exist_ok=True)
        if keep:
            (folder / KEPT).mkdir(exist_ok=True)
        own = folder.rglob(f"{generation:06d}-*.journal")
        self._next_number = max((int(segment.stem.partition("-")[2]) + 1 for segment in own), default=0)
        for segment in sorted(folder.glob("*.journal")):
            self._index(segment)

    def __contains__(self, group: int) -> bool:
        return group in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._places))

    def append(self, group: Group) -> None:
        """Writes a group and returns when it is on disk. Does nothing if the journal has the group already.

        If it cannot be written, raises OSError with the segment's path, and the group is not in the journal.
        """
        if group.id in self._places:
            return
        record = _record(encode_group(group))
        segment = self._writable_segment()
        offset = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            with naming(segment):
                write_whole(self._fd, record)
                os.fdatasync(self._fd)
        except OSError:
            self._abandon_segment(offset)
            raise
        self._remember(group.id, Place(segment, offset))

    def read(self, group: int) -> Group:
        """Reads a group. Raises KeyError if it is not in the journal, ValueError if its record is damaged."""
        return read_at(self._places[group], group)

    def discard(self, groups: list[int]) -> None:
        """Forgets groups that a complete checkpoint has made unnecessary, and deletes empty segments."""
        for group in groups:
            place = self._places.pop(group, None)
            if place is not None:
                self._live[place.segment].discard(group)
        for segment in [s for s, live in self._live.items() if not live and s != self._segment]:
            if self._keep:
                os.rename(segment, self._folder / KEPT / segment.name)
            else:
                segment.unlink(missing_ok=True)
            del self._live[segment]

    def close(self) -> None:
        """Closes the segment that is being written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _writable_segment(self) -> Path:
        if self._segment is None or os.lseek(self._fd, 0, os.SEEK_END) >= _SEGMENT_BYTES:
            self.close()
            self._segment = None
            segment = self._folder / f"{self._generation:06d}-{self._next_number:06d}.journal"
            self._fd = os.open(segment, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._next_number += 1
            self._segment = segment
            self._live[segment] = set()
            flush(self._folder)
        return self._segment

    def _abandon_segment(self, end: int) -> None:
        """Ends the segment after a failed write at offset `end`, and cuts off the partial record."""
        try:
            os.ftruncate(self._fd, end)
        except OSError as error:
            self.torn.append(
                f"{self._segment}: a torn record after offset {end} could not be cut off: {error}"
            )
        self.close()
        self._segment = None

    def _remember(self, group: int, place: Place) -> None:
        self._places[group] = place
        self._live.setdefault(place.segment, set()).add(group)

    def _index(self, segment: Path) -> None:
        self._live.setdefault(segment, set())
        found, torn = groups_of(segment)
        self.torn += [] if torn is None else [torn]
        for group, place in found:
            self._remember(group, place)


def groups_of(segment: Path) -> tuple[list[tuple[int, Place]], str | None]:
    """The groups of a segment with their places, and a message if it ends in a torn record."""
    size = segment.stat().st_size
    found: list[tuple[int, Place]] = []
    with segment.open("rb") as file:
        while (offset := file.tell()) < size:
            buffers = _read_record(file)
            if buffers is None:
                return (
                    found,
                    f"{segment.name}: {size - offset} bytes after offset {offset} are not a record",
                )
            found.append((decode_group(buffers).id, Place(segment, offset)))
    return found, None


def first_of(segment: Path) -> Group | None:
    """A segment's first group that an engine generated; None if it has none. Demonstrations have negative numbers."""
    with segment.open("rb") as file:
        while (buffers := _read_record(file)) is not None:
            if (group := decode_group(buffers)).id >= 0:
                return group
    return None


def read_at(place: Place, group: int) -> Group:
    """Reads a group at its place. Raises ValueError if its record is damaged."""
    with place.segment.open("rb") as file:
        file.seek(place.offset)
        buffers = _read_record(file)
    if buffers is None:
        raise ValueError(f"record of group {group} at {place.segment}:{place.offset} is damaged")
    return decode_group(buffers)


def _record(buffers: list[Buffer]) -> bytes:
    raw = [memoryview(b).cast("B") for b in buffers]
    payload = struct.pack(f"<{len(raw)}Q", *(b.nbytes for b in raw)) + b"".join(raw)
    count = struct.pack("<I", len(raw))
    return _HEAD.pack(_MAGIC, zlib.crc32(payload, zlib.crc32(count)), len(raw)) + payload


def _read_record(file) -> list[Buffer] | None:
    """Reads a record's buffers at the file's position. None if no whole, undamaged record is there."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, crc, count = _HEAD.unpack(head)
    if magic != _MAGIC or count > _MAX_BUFFERS:
        return None
    raw_lengths = file.read(8 * count)
    if len(raw_lengths) < 8 * count:
        return None
    lengths = struct.unpack(f"<{count}Q", raw_lengths)
    remaining = os.fstat(file.fileno()).st_size - file.tell()
    if sum(lengths) > remaining:
        return None
    body = file.read(sum(lengths))
    if zlib.crc32(body, zlib.crc32(raw_lengths, zlib.crc32(struct.pack("<I", count)))) != crc:
        return None
    buffers: list[Buffer] = []
    start = 0
    for length in lengths:
        buffers.append(memoryview(body)[start : start + length])
        start += length
    return buffers
