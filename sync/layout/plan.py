"""Plans who sends which blocks to whom, in which bucket: a pure function of every rank's table of blocks.

The trainer's ranks are senders 0..S-1, an engine's ranks are receivers S..S+E-1. Every receiver's block is cut into
*segments* where the senders' blocks end. If several trainer ranks hold a segment, one of them sends it. If several
receivers hold the same block, one of them gets it from the trainer and passes it on to the others: it crosses the
links inside the engine, and the trainer's link only once. Segments with the same sender and receivers form a
*stream*. Each stream is divided into *parcels*, one per bucket, so that each bucket uses all links and not only those
of one pipeline stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verst.sync.layout.blocks import BLOCK, DIMS, DTYPES, Blocks

ALIGN = 4096  # bytes; segments begin at multiples of it, so that checksums cover whole rows
_SPLIT = 16  # a segment is at most 1/16 of a bucket

SEGMENT = np.dtype(
    [
        ("tensor", np.int32),
        ("start", np.int64, DIMS),
        ("length", np.int64, DIMS),
        ("nbytes", np.int64),
        ("source_box", np.int32),  # index of the senders' box that it is cut from
        ("target_box", np.int32),  # and of the receivers' box
        ("sender", np.int32),
        ("first", np.int32),  # the receiver that gets it from the sender
        ("stream", np.int32),
        ("bucket", np.int32),
        ("position", np.int64),  # in its parcel, bytes
    ]
)

PARCEL = np.dtype(
    [
        ("bucket", np.int32),
        ("stream", np.int32),
        ("begin", np.int64),  # its segments are begin..end in the plan's array
        ("end", np.int64),
        ("checks", np.int64),  # where its checksums begin, bytes
        ("nbytes", np.int64),
    ]
)


_ITEMSIZE = np.array([dtype.itemsize for dtype in DTYPES], dtype=np.int64)


class PlanError(ValueError):
    """The trainer's blocks do not make up the engine's blocks."""


@dataclass(frozen=True)
class Boxes:
    """The distinct boxes of one side, and the ranks that hold each.

    The holders of box i are `holders[begin[i]:begin[i + 1]]`; the same slice of `rows` has their table rows.
    """

    keys: np.ndarray  # of BLOCK; only tensor, start and length count
    dtype: np.ndarray  # int8, indices into DTYPES
    begin: np.ndarray
    holders: np.ndarray  # ranks
    rows: np.ndarray  # of BLOCK, each holder's own

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> np.ndarray:
        """Size of each box in bytes."""
        return self.keys["length"].prod(axis=1) * _ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Plan:
    """The plan for all ranks; `schedule.py` derives from it what one rank does."""

    names: list[str]
    senders: int
    receivers: int
    buckets: int
    source: Boxes
    target: Boxes
    segments: np.ndarray  # of SEGMENT, in the order of parcels and positions
    parcels: np.ndarray  # of PARCEL, in the order of buckets and streams
    stream_sender: np.ndarray  # the sender of each stream
    stream_first: np.ndarray  # its first receiver, which gets it from the sender
    stream_holders: list[tuple[int, ...]]  # all its receivers, the first receiver first

    @property
    def nbytes(self) -> int:
        """Total bytes of all segments, each counted once."""
        return int(self.segments["nbytes"].sum())

    @property
    def link_bytes(self) -> list[int]:
        """Bytes for each pair of a sender and a receiver between which something is sent, largest first."""
        pairs = self.segments["sender"].astype(np.int64) << 32 | self.segments["first"]
        sums = np.bincount(np.unique(pairs, return_inverse=True)[1], self.segments["nbytes"])
        return sorted(sums.astype(np.int64).tolist(), reverse=True)


def make_plan(
    senders: Sequence[Blocks], receivers: Sequence[Blocks], bucket_bytes: int, rotation: int = 0
) -> Plan:
    """Makes the plan for one engine from the tables of both sides.

    No rank's bucket is much larger than `bucket_bytes`. `rotation` (the engine's number) decides which of several
    trainer replicas begins, so that all engines together load the replicas evenly. Raises PlanError that names the
    tensors which the trainer ranks do not hold in full, or hold as overlapping, unequal blocks.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(n for b in receivers for n in b.names))}
    source = _boxes(senders, names, 0, by_dtype=False)
    target = _boxes(receivers, names, len(senders), by_dtype=True)
    segments = _intersect(source, target, list(names))
    segments = _split(segments, max(ALIGN, bucket_bytes // _SPLIT))
    segments["first"] = _first_receivers(target, len(senders) + len(receivers))[segments["target_box"]]
    segments["sender"] = _balanced_senders(source, segments, rotation)
    streams = _streams(segments, target)
    load = max(np.bincount(segments[side], _room(segments)).max(initial=0) for side in ("sender", "first"))
    buckets = max(1, int(-(-load // bucket_bytes)))
    segments, parcels = _parcels(segments, target, buckets)
    return Plan(
        names=list(names),
        senders=len(senders),
        receivers=len(receivers),
        buckets=buckets,
        source=source,
        target=target,
        segments=segments,
        parcels=parcels,
        stream_sender=streams[0],
        stream_first=streams[1],
        stream_holders=streams[2],
    )


def _boxes(tables: Sequence[Blocks], names: dict[str, int], first_rank: int, *, by_dtype: bool) -> Boxes:
    """Groups the equal boxes of all ranks; leaves out tensors that are not in `names`."""
    rows, ranks, dtypes = [], [], []
    for number, table in enumerate(tables):
        local = np.array([names.get(name, -1) for name in table.names], dtype=np.int32)
        mine = table.rows.copy()
        mine["tensor"] = local[mine["tensor"]] if len(mine) else mine["tensor"]
        mine = mine[mine["tensor"] >= 0]
        codes = np.array([DTYPES.index(dtype) for dtype in table.dtypes], dtype=np.int8)
        rows.append(mine)
        ranks.append(np.full(len(mine), first_rank + number, dtype=np.int32))
        dtypes.append(codes[mine["parameter"]] if len(mine) else np.empty(0, np.int8))
    all_rows = np.concatenate(rows) if rows else np.empty(0, BLOCK)
    rank, dtype = np.concatenate(ranks), np.concatenate(dtypes)
    key = np.concatenate(
        [
            all_rows["tensor"][:, None].astype(np.int64),
            all_rows["start"],
            all_rows["length"],
            (dtype if by_dtype else np.zeros_like(dtype))[:, None].astype(np.int64),
        ],
        axis=1,
    )
    order = np.lexsort(key.T[::-1])
    key, all_rows, rank, dtype = key[order], all_rows[order], rank[order], dtype[order]
    new = np.ones(len(key), dtype=bool)
    new[1:] = (key[1:] != key[:-1]).any(axis=1)
    begin = np.append(np.flatnonzero(new), len(key))
    return Boxes(all_rows[new], dtype[new], begin, rank, all_rows)


def _intersect(source: Boxes, target: Boxes, names: list[str]) -> np.ndarray:
    """Every overlap of a target box with a source box, as segments without sender and receiver yet."""
    low = np.searchsorted(source.keys["tensor"], target.keys["tensor"], side="left")
    count = np.searchsorted(source.keys["tensor"], target.keys["tensor"], side="right") - low
    t = np.repeat(np.arange(len(target)), count)
    s = np.arange(len(t)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    begin = np.maximum(source.keys["start"][s], target.keys["start"][t])
    end = np.minimum(
        source.keys["start"][s] + source.keys["length"][s], target.keys["start"][t] + target.keys["length"][t]
    )
    keep = (end > begin).all(axis=1)
    s, t, begin, end = s[keep], t[keep], begin[keep], end[keep]
    segments = np.zeros(len(s), SEGMENT)
    segments["tensor"] = target.keys["tensor"][t]
    segments["start"], segments["length"] = begin, end - begin
    segments["nbytes"] = (end - begin).prod(axis=1) * _ITEMSIZE[target.dtype[t]]
    segments["source_box"], segments["target_box"] = s, t
    wanted = target.nbytes
    found = np.zeros(len(target), np.int64)
    np.add.at(found, t, segments["nbytes"])
    if (found != wanted).any():
        short = sorted({names[i] for i in target.keys["tensor"][found < wanted]})
        twice = sorted({names[i] for i in target.keys["tensor"][found > wanted]})
        raise PlanError(
            "; ".join(
                f"{what} {', '.join(which[:10])}{f' and {len(which) - 10} more' if len(which) > 10 else ''}"
                for what, which in (
                    ("no trainer rank holds all of", short),
                    ("trainer ranks hold overlapping, unequal blocks of", twice),
                )
                if which
            )
        )
    return segments


def _split(segments: np.ndarray, largest: int) -> np.ndarray:
    """Cuts segments of more than `largest` bytes along their first dimension that is longer than 1."""
    axis = (segments["length"] > 1).argmax(axis=1)
    every = np.arange(len(segments))
    along = segments["length"][every, axis]
    per_row = segments["nbytes"] // along
    rows = np.clip(largest // np.maximum(per_row, 1), 1, along)
    count = -(-along // rows)
    of = np.repeat(every, count)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    cut = segments[of]
    begin = nth * rows[of]
    length = np.minimum(rows[of], along[of] - begin)
    index = np.arange(len(of))
    cut["start"][index, axis[of]] += begin
    cut["length"][index, axis[of]] = length
    cut["nbytes"] = per_row[of] * length
    return cut


def _room(segments: np.ndarray) -> np.ndarray:
    """Bytes that each segment takes in a bucket."""
    return -(-segments["nbytes"] // ALIGN) * ALIGN


def _first_receivers(target: Boxes, ranks: int) -> np.ndarray:
    """For each box the rank that gets it from the trainer: of several holders, the one with the fewest bytes so far."""
    first = target.holders[target.begin[:-1]].copy()
    nbytes = target.nbytes
    sets, of = _holder_sets(target)
    several = np.flatnonzero(np.array([len(s) > 1 for s in sets])[of])
    load = np.bincount(np.delete(first, several), np.delete(nbytes, several), minlength=ranks)
    for box in several[np.argsort(-nbytes[several], kind="stable")]:
        first[box] = min(sets[of[box]], key=lambda rank: load[rank])
        load[first[box]] += nbytes[box]
    return first


def _holder_sets(boxes: Boxes) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """The distinct sets of ranks that hold a box, and for each box the index of its set."""
    sets: dict[tuple[int, ...], int] = {}
    number = np.empty(len(boxes), np.int64)
    one = np.diff(boxes.begin) == 1
    ranks, number[one] = np.unique(boxes.holders[boxes.begin[:-1][one]], return_inverse=True)
    sets = {(int(rank),): i for i, rank in enumerate(ranks)}
    for box in np.flatnonzero(~one):
        holders = tuple(sorted(set(boxes.holders[boxes.begin[box] : boxes.begin[box + 1]].tolist())))
        number[box] = sets.setdefault(holders, len(sets))
    return list(sets), number


def _balanced_senders(source: Boxes, segments: np.ndarray, rotation: int) -> np.ndarray:
    """The sender of each segment. Within each set of replicas, segments are dealt by size in alternating directions,
    so that all replicas send about the same amount."""
    sets, of_box = _holder_sets(source)
    of = of_box[segments["source_box"]]
    order = np.lexsort((np.arange(len(segments)), -segments["nbytes"], of))
    sender = np.empty(len(segments), np.int32)
    bounds = np.searchsorted(of[order], np.arange(len(sets) + 1))
    for number, holders in enumerate(sets):
        group = order[bounds[number] : bounds[number + 1]]
        turn, nth = np.divmod(np.arange(len(group)), len(holders))
        nth = np.where(turn % 2, len(holders) - 1 - nth, nth)
        sender[group] = np.array(holders, np.int32)[(nth + rotation) % len(holders)]
    return sender


def _streams(segments: np.ndarray, target: Boxes) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Groups the segments into streams by sender, first receiver and all receivers, and returns these three by stream.

    Writes each segment's stream number into `segments`.
    """
    holders, of_box = _holder_sets(target)
    ways = np.stack([segments["sender"], segments["first"], of_box[segments["target_box"]]], axis=1).astype(
        np.int64
    )
    streams, segments["stream"] = np.unique(ways, axis=0, return_inverse=True)
    ordered = [
        (int(first), *(rank for rank in holders[number] if rank != first)) for _, first, number in streams
    ]
    return streams[:, 0], streams[:, 1], ordered


def _parcels(segments: np.ndarray, target: Boxes, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Divides each stream among the buckets and lays out its parcels. Returns the sorted segments and the parcels."""
    row = target.rows[target.begin[segments["target_box"]]]
    place = row["offset"] + ((segments["start"] - row["start"]) * row["stride"]).sum(axis=1)
    # In the order of the receiver's memory, so that neighbours there are also neighbours in the parcel.
    segments = segments[np.lexsort((place, row["parameter"], segments["stream"]))]
    room = _room(segments)
    total = np.bincount(segments["stream"], room)
    before = np.cumsum(room) - room
    opens = np.searchsorted(segments["stream"], np.arange(len(total)))
    before -= before[opens][segments["stream"]]
    # Each stream begins in another bucket. Otherwise all streams with fewer segments than there are buckets would meet
    # in the first bucket.
    first = np.arange(len(total)) * buckets // max(1, len(total))
    nth = before * buckets // total.astype(np.int64)[segments["stream"]]
    segments["bucket"] = (nth + first[segments["stream"]]) % buckets
    segments = segments[np.argsort(segments["bucket"], kind="stable")]
    new = np.ones(len(segments), dtype=bool)
    new[1:] = (np.diff(segments["bucket"]) != 0) | (np.diff(segments["stream"]) != 0)
    begin = np.flatnonzero(new)
    parcels = np.zeros(len(begin), PARCEL)
    parcels["begin"], parcels["end"] = begin, np.append(begin[1:], len(segments))
    parcels["bucket"], parcels["stream"] = segments["bucket"][begin], segments["stream"][begin]
    room = _room(segments)
    position = np.cumsum(room) - room
    of = np.cumsum(new) - 1
    segments["position"] = position - position[begin][of]
    parcels["checks"] = np.add.reduceat(room, begin) if len(begin) else 0
    checks = (parcels["end"] - parcels["begin"]) * 8
    parcels["nbytes"] = parcels["checks"] + -(-checks // ALIGN) * ALIGN
    return segments, parcels
