"""The messages of a weight-sync round between the controller, the trainer ranks and the rollout workers.

A round: version+1 -> pause -> transfer -> verify -> continue. `verst.sync` plans and moves blocks of weights;
these are the messages around that.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PauseMode = Literal["in_place", "retract"]
Carries = Literal["tensors", "blocks"]


class EngineLink(msgspec.Struct, frozen=True, kw_only=True):
    """How trainer ranks and one engine form their own process group.

    Trainer ranks 0..trainer_ranks-1 come first, then the engine's tensor-parallel ranks. `carries` says what
    is sent: "tensors" are whole tensors, broadcast by the source rank; "blocks" are the parts that each
    engine rank holds, sent by every trainer rank.
    """

    engine: int
    host: str
    port: int  # of the source rank's TCPStore
    name: str  # unique for each (engine incarnation, round it joined in)
    carries: Carries = "tensors"
    trainer_ranks: int = 1
    engine_ranks: int
    backend: Literal["gloo", "nccl"]
    # Blocks are copied out of the sender's memory; the backend carries only control words.
    shared: bool = False
    double_buffer: bool = False  # blocks are received into a second buffer beside the weights in use
    bucket_bytes: int = 0  # bytes of blocks in one bucket
    timeout_s: float = 120.0


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors by their Hugging Face names, broadcast one after another in this order."""

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
    # Where the engine's node keeps a copy to which deltas are applied, "" for the default; None: read the
    # folder.
    copy_in: str | None
    pause: PauseMode
    go_on: bool  # resume when it is loaded
    timeout_s: float


class WeightRound(msgspec.Struct, frozen=True, kw_only=True):
    """The controller's request to every trainer rank to send `version` to `engines`."""

    version: int
    engines: list[int]
    pause: PauseMode
    check: bool  # compare every engine tensor with the trainer's afterwards
    deadline_s: float


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """How long an engine took to receive blocks or read a folder. In seconds, except `fetch_bytes`."""

    fetch: float = 0.0  # reading and verifying, while the engine generated
    fetch_bytes: int = 0
    pause: float  # until the engine had stopped generating
    transfer: float = 0.0
    # The engine's work after the transfer: its loader, data that it keeps beside its parameters, the second
    # buffer's copy.
    load: float
    resume: float
    stopped: float  # how long the engine generated nothing


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a round. An engine in `failed`, with its reason, does not serve until it rejoins."""

    version: int
    updated: list[int]
    failed: dict[int, str]
    bytes: int  # sent over all links from the trainer, or written to a folder
    seconds: dict[str, float]  # by phase, see `SourceRound`
    taken: dict[int, Taken] = {}  # by engine, for engines that received blocks or read a folder
    # By engine that received blocks: the bytes of each link, the fullest first.
    link_bytes: dict[int, list[int]] = {}
    checked_tensors: int = 0  # tensors that were compared bit for bit and equal, over all engines

    def longest(self) -> dict[str, float]:
        """For each figure of `taken`, the largest value over all engines."""
        if not self.taken:
            return {}
        return {
            name: max(getattr(taken, name) for taken in self.taken.values())
            for name in Taken.__struct_fields__
        }

    def links(self) -> dict[str, float]:
        """Figures of the links between trainer ranks and engine ranks.

        Their number, the bytes of the fullest and the emptiest, and the lowest rate. The rate of an engine is
        that of its fullest link, in bytes per second.
        """
        sizes = [nbytes for of_engine in self.link_bytes.values() for nbytes in of_engine]
        if not sizes:
            return {}
        rates = [s[0] / self.taken[engine].transfer for engine, s in self.link_bytes.items() if s]
        return {"count": len(sizes), "most": max(sizes), "least": min(sizes), "rate": min(rates)}
