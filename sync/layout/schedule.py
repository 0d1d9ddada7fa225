"""Derives from a plan what one rank does in each bucket: messages, moves between memory and bucket, checksums.

A rank has one buffer (a slot) per bucket in flight. A sender packs its blocks into the slot and sends it. A receiver
receives into its slot, passes on what other ranks of its engine need too, and unpacks into its parameters. All of
this is computed beforehand, so that a round runs without Python work per tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from verst.sync.layout.blocks import DIMS
from verst.sync.layout.plan import ALIGN, Boxes, Plan

MOVE = np.dtype(
    [
        ("position", np.int64),  # in the slot, bytes
        ("nbytes", np.int64),
        ("dtype", np.int8),  # of the data in the slot (the receiver's dtype), an index into DTYPES
        ("parameter", np.int32),
        ("offset", np.int64),  # in the parameter's storage, elements
        ("length", np.int64, DIMS),
        ("stride", np.int64, DIMS),
        ("tensor", np.int32),
    ]
)


@dataclass(frozen=True)
class Message:
    """One send or receive of `nbytes` of the slot, beginning at `position`."""

    peer: int
    position: int
    nbytes: int


@dataclass
class Bucket:
    """What a rank does in one bucket. Receivers first receive everything, then pass it on, then unpack it."""

    sends: list[Message] = field(default_factory=list)
    receives: list[Message] = field(default_factory=list)
    pass_on: list[Message] = field(default_factory=list)
    passed: list[Message] = field(default_factory=list)  # receives from ranks of the same engine
    moves: np.ndarray = field(default_factory=lambda: np.empty(0, MOVE))
    # For each segment in the slot: its first row and the row after its last (rows of ALIGN bytes), its tensor, and
    # where its checksum is.
    rows: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    tensors: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    checks: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # index of int64 words
    nbytes: int = 0


def schedule(plan: Plan, rank: int) -> list[Bucket]:
    """All buckets of one rank, including those in which it has nothing to do."""
    sending = rank < plan.senders
    involved = [
        (rank == sender) if sending else (rank in holders)
        for sender, holders in zip(plan.stream_sender, plan.stream_holders, strict=True)
    ]
    mine = plan.parcels[np.array(involved, dtype=bool)[plan.parcels["stream"]]]
    boxes = plan.source if sending else plan.target
    own_rows = _rows_of(boxes, rank)
    buckets = [Bucket() for _ in range(plan.buckets)]
    parts: list[list[np.ndarray]] = [[] for _ in buckets]  # moves
    marks: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in buckets]
    for parcel in mine:
        number = int(parcel["bucket"])
        bucket = buckets[number]
        at = bucket.nbytes
        bucket.nbytes += int(parcel["nbytes"])
        _add_messages(bucket, plan, int(parcel["stream"]), rank, at, int(parcel["nbytes"]))
        segments = plan.segments[parcel["begin"] : parcel["end"]]
        side = "source_box" if sending else "target_box"
        parts[number].append(_moves(segments, at, own_rows, side, plan.target.dtype))
        first = (at + segments["position"]) // ALIGN
        last = first + -(-segments["nbytes"] // ALIGN)
        words = (at + int(parcel["checks"])) // 8 + np.arange(len(segments))
        marks[number].append((np.stack([first, last], axis=1), segments["tensor"], words))
    for bucket, moves, mark in zip(buckets, parts, marks, strict=True):
        if moves:
            bucket.moves = _merged(np.concatenate(moves))
            bucket.rows, bucket.tensors, bucket.checks = (np.concatenate(c) for c in zip(*mark, strict=True))
    return buckets


def _add_messages(bucket: Bucket, plan: Plan, stream: int, rank: int, at: int, nbytes: int) -> None:
    first, *others = plan.stream_holders[stream]
    sender = int(plan.stream_sender[stream])
    if rank == sender:
        bucket.sends.append(Message(first, at, nbytes))
    elif rank == first:
        bucket.receives.append(Message(sender, at, nbytes))
        bucket.pass_on += [Message(other, at, nbytes) for other in others]
    else:
        bucket.passed.append(Message(first, at, nbytes))


@dataclass(frozen=True)
class _OwnRows:
    """A rank's table rows by box: `rows[begin[i]:begin[i + 1]]` belong to box `box[i]`."""

    box: np.ndarray
    begin: np.ndarray
    rows: np.ndarray


def _rows_of(boxes: Boxes, rank: int) -> _OwnRows:
    of = np.repeat(np.arange(len(boxes)), np.diff(boxes.begin))
    mine = boxes.holders == rank
    of, rows = of[mine], boxes.rows[mine]
    box, begin = np.unique(of, return_index=True)
    return _OwnRows(box, np.append(begin, len(of)), rows)


def _moves(segments: np.ndarray, at: int, own: _OwnRows, side: str, dtype: np.ndarray) -> np.ndarray:
    """The moves between the slot and the rank's own memory. A receiver may hold a box more than once."""
    where = np.searchsorted(own.box, segments[side])
    count = own.begin[where + 1] - own.begin[where]
    if side == "source_box":
        count = np.ones_like(count)  # one copy is enough to read from
    of = np.repeat(np.arange(len(segments)), count)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    rows, cut = own.rows[own.begin[where][of] + nth], segments[of]
    moves = np.zeros(len(of), MOVE)
    moves["position"], moves["nbytes"] = at + cut["position"], cut["nbytes"]
    moves["dtype"] = dtype[cut["target_box"]]
    moves["parameter"], moves["tensor"] = rows["parameter"], cut["tensor"]
    moves["offset"] = rows["offset"] + ((cut["start"] - rows["start"]) * rows["stride"]).sum(axis=1)
    moves["length"], moves["stride"] = cut["length"], rows["stride"]
    return moves


def _merged(moves: np.ndarray) -> np.ndarray:
    """Merges moves that follow each other both in memory and in the slot: at best a whole fused parameter."""
    elements = moves["length"].prod(axis=1)
    flat = np.stack(
        [moves["length"][:, 1] * moves["length"][:, 2], moves["length"][:, 2], np.ones_like(elements)], 1
    )
    contiguous = ((moves["stride"] == flat) | (moves["length"] == 1)).all(axis=1)
    follows = np.zeros(len(moves), dtype=bool)
    follows[1:] = (
        contiguous[1:]
        & contiguous[:-1]
        & (moves["dtype"][1:] == moves["dtype"][:-1])
        & (moves["parameter"][1:] == moves["parameter"][:-1])
        & (moves["offset"][1:] == moves["offset"][:-1] + elements[:-1])
        & (moves["position"][1:] == moves["position"][:-1] + moves["nbytes"][:-1])
    )
    begin = np.flatnonzero(~follows)
    merged = moves[begin].copy()
    merged["nbytes"] = np.add.reduceat(moves["nbytes"], begin)
    long = np.append(begin[1:], len(moves)) - begin > 1
    merged["length"][long] = np.stack(
        [np.ones(long.sum(), np.int64)] * 2 + [np.add.reduceat(elements, begin)[long]], 1
    )
    merged["stride"][long] = (0, 0, 1)
    return merged
