"""Messages between processes of one node through shared memory: the receiver copies out of the sender's slot.

Slots are mapped when the link is made (`shared_memory.py`). Each message then takes two short messages over gloo: its
place in the sender's slot, and the receiver's confirmation that it has copied it. So a trainer rank and an engine can
share a GPU, which NCCL refuses. Ranks that cannot map each other's memory, for instance on different nodes, send the
bytes through gloo.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from verst.sync.layout.schedule import Message
from verst.sync.wire.groups import Backend
from verst.sync.wire.shared_memory import Exported, NotMappable, allocate, export, map_exported
from verst.sync.wire.wire import TransferError, Wire, next_tag, part_of, wait

log = logging.getLogger(__name__)


class SharedWire(Wire):
    """A wire over shared memory and a gloo backend; `device` is the parameters' device."""

    def __init__(self, backend: Backend, device: torch.device) -> None:
        super().__init__(backend)
        self.device = device
        self._slots: list[int] = []  # addresses of this rank's slots
        self._theirs: dict[int, list[torch.Tensor]] = {}  # each peer's slots, as mapped here
        self._readers: set[int] = set()  # the peers that have mapped this rank's slots

    def allocate(self, nbytes: int) -> torch.Tensor:
        return allocate(nbytes, self.device)

    def attach(self, slots: Sequence[torch.Tensor], deadline: float) -> None:
        self._slots = [slot.data_ptr() for slot in slots]
        mine = msgspec.msgpack.encode([export(slot) for slot in slots])
        rank = self.backend.rank()
        for peer, data in enumerate(self.share(mine, deadline)):
            if peer == rank:
                continue
            try:
                self._theirs[peer] = self._map(peer, msgspec.msgpack.decode(data, type=list[Exported]))
            except NotMappable:
                continue
        mapped = self.share(msgspec.msgpack.encode(sorted(self._theirs)), deadline)
        log.info(
            "of %d ranks in the group %d share memory with this one; the others go through gloo",
            self.backend.size() - 1,
            len(self._theirs),
        )
        self._readers = {p for p, data in enumerate(mapped) if rank in msgspec.msgpack.decode(data)}

    def _map(self, peer: int, slots: list[Exported]) -> list[torch.Tensor]:
        return [map_exported(slot) for slot in slots]

    def post(self, slot: torch.Tensor, sends: Sequence[Message], receives: Sequence[Message]) -> list[Any]:
        tags: dict[int, int] = {}
        works: list[Any] = [self._receive(slot, m, 2 * next_tag(tags, m.peer)) for m in receives]
        if sends and self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the peers read the slot from now on
        tags = {}
        return works + [self._send(slot, m, 2 * next_tag(tags, m.peer)) for m in sends]

    def finish(self, works: Sequence[Any], deadline: float) -> None:
        for work in works:
            work.finish(deadline)

    def complete(self, works: Sequence[Any], deadline: float, given_up: threading.Event) -> None:
        self.finish(works, deadline)
        if given_up.is_set():
            raise TransferError("given up")

    def _send(self, slot: torch.Tensor, message: Message, tag: int) -> _Offer | _StagedSend:
        if message.peer not in self._readers:
            return _StagedSend(self.backend, part_of(slot, message).cpu(), message.peer, tag)
        where = torch.tensor([self._slots.index(slot.data_ptr()), message.position])
        return _Offer(self.backend, where, message.peer, tag)

    def _receive(self, slot: torch.Tensor, message: Message, tag: int) -> _Copy | _StagedReceive:
        kind: Any = _Copy if message.peer in self._theirs else _StagedReceive
        work = kind(self, part_of(slot, message), message.peer, tag)
        return work


class _Offer:
    """An outgoing message that stays in its slot until the peer has copied it."""

    def __init__(self, backend: Any, where: torch.Tensor, peer: int, tag: int) -> None:
        self._words = where, torch.zeros(1)  # kept here, because gloo does not keep its buffers alive
        self._sent = backend.send([where], peer, tag)
        self._taken = backend.recv([self._words[1]], peer, tag + 1)

    def finish(self, deadline: float) -> None:
        wait(self._sent, deadline)
        wait(self._taken, deadline)


class _Arrival:
    """An incoming message, copied into `part` once the stream that was current at construction is done with `part`."""

    def __init__(self, wire: SharedWire, part: torch.Tensor, peer: int, tag: int) -> None:
        self.wire, self.part, self.peer, self.tag = wire, part, peer, tag
        # The slot is free once that stream has reached this point.
        self.free = torch.cuda.current_stream().record_event() if part.is_cuda else None
        self.buffer = self.make_buffer()
        self.here = wire.backend.recv([self.buffer], peer, tag)

    def make_buffer(self) -> torch.Tensor:
        raise NotImplementedError

    def bytes_there(self) -> torch.Tensor:
        raise NotImplementedError

    def finish(self, deadline: float) -> None:
        wait(self.here, deadline)
        if self.free is not None:
            torch.cuda.current_stream().wait_event(self.free)
        self.part.copy_(self.bytes_there())
        self.wire.synchronize(deadline)


class _Copy(_Arrival):
    """An incoming message that is copied out of the peer's mapped slot."""

    def make_buffer(self) -> torch.Tensor:
        return torch.zeros(2, dtype=torch.int64)

    def bytes_there(self) -> torch.Tensor:
        slot, position = self.buffer.tolist()
        return self.wire._theirs[self.peer][slot].narrow(0, position, len(self.part))

    def finish(self, deadline: float) -> None:
        super().finish(deadline)
        wait(self.wire.backend.send([torch.zeros(1)], self.peer, self.tag + 1), deadline)


class _StagedReceive(_Arrival):
    """An incoming message through host memory, from a peer whose memory cannot be mapped."""

    def make_buffer(self) -> torch.Tensor:
        return torch.empty(len(self.part), dtype=torch.uint8)

    def bytes_there(self) -> torch.Tensor:
        return self.buffer


class _StagedSend:
    """An outgoing message through host memory, to a peer that cannot map this rank's."""

    def __init__(self, backend: Any, data: torch.Tensor, peer: int, tag: int) -> None:
        self._data = data
        self._sent = backend.send([data], peer, tag)

    def finish(self, deadline: float) -> None:
        wait(self._sent, deadline)
