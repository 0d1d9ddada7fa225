"""The messages of a weight-sync round between controller, trainer ranks and rollout workers.

A round: version+1 -> pause -> transfer -> verify -> continue. How blocks are planned and moved is
`verst.sync`'s business; these are the calls around it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PauseMode = Literal["in_place", "retract"]
Carries = Literal["tensors", "blocks"]


class EngineLink(msgspec.Struct, frozen=True, kw_only=True):
    """How trainer ranks and one engine form a process group of their own.

    Trainer ranks 0..trainer_ranks-1 come first, then the engine's tensor-parallel ranks. "tensors": whole
    ones from the source rank, broadcast; "blocks": from every trainer rank what each engine rank holds.
    """

    engine: int
    host: str
    port: int  # of the TCPStore the source listens on
    name: str  # unique for each (engine incarnation, round it joined in)
    carries: Carries = "tensors"
    trainer_ranks: int = 1
    engine_ranks: int
    backend: Literal["gloo", "nccl"]
    shared: bool = False  # blocks are copied out of the sender's memory; the backend carries words
    double_buffer: bool = False  # blocks are received beside the weights in use
    bucket_bytes: int = 0  # of blocks
    timeout_s: float = 120.0


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors under their Hugging Face names, broadcast one after another in this order."""

    version: int
    index: int
    names: list[str]
    dtypes: list[str]  # "bfloat16", "float32", …
    shapes: list[list[int]]
    last: bool


class FolderVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A published version that an engine is to load."""

    root: str  # see sync/versions/folder.py
    version: int
    # Where the engine's node keeps a copy that deltas are applied to, "" for its default; None: read the folder.
    copy_in: str | None
    pause: PauseMode
    go_on: bool  # resume when it is loaded
    timeout_s: float


class WeightRound(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller asks of every trainer rank: send `version` to `engines`."""

    version: int
    engines: list[int]
    pause: PauseMode
    check: bool  # compare every engine tensor with the trainer's afterwards
    deadline_s: float


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine took a version by itself: as blocks, or out of a folder. Seconds, but for one."""

    fetch: float = 0.0  # reading and verifying, while it generated
    fetch_bytes: int = 0
    pause: float  # until nothing was generated any more
    transfer: float = 0.0
    # What follows in the engine: its own loader, what it keeps beside its parameters, the second buffer's copy.
    load: float
    resume: float
    stopped: float  # it generated nothing


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a round went. An engine that failed is named with its reason and serves nothing until it rejoins."""

    version: int
    updated: list[int]
    failed: dict[int, str]
    bytes: int  # over all links from the trainer, or written to a folder
    seconds: dict[str, float]  # by phase, see `SourceRound`
    taken: dict[int, Taken] = {}  # by engine that took it by itself
    link_bytes: dict[int, list[int]] = {}  # by engine that received blocks: over each link, the fullest first
    checked_tensors: int = 0  # compared bit for bit and equal, over all engines

    def longest(self) -> dict[str, float]:
        """The largest figure of `taken` over all engines, each by itself."""
        if not self.taken:
            return {}
        return {
            name: max(getattr(taken, name) for taken in self.taken.values())
            for name in Taken.__struct_fields__
        }

    def links(self) -> dict[str, float]:
        """Between trainer ranks and engine ranks: how many, bytes of the fullest and the emptiest, and the lowest rate.

        The rate is an engine's fullest link's, in bytes a second.
        """
        sizes = [nbytes for of_engine in self.link_bytes.values() for nbytes in of_engine]
        if not sizes:
            return {}
        rates = [s[0] / self.taken[engine].transfer for engine, s in self.link_bytes.items() if s]
        return {"count": len(sizes), "most": max(sizes), "least": min(sizes), "rate": min(rates)}
