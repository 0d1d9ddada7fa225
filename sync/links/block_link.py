"""A trainer rank's end of the block link to one engine: joins the group, plans with all ranks, sends versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from verst.sync.layout.blocks import Blocks, empty_blocks
from verst.sync.layout.plan import Plan, make_plan
from verst.sync.layout.schedule import schedule
from verst.sync.wire.exchange import Sender
from verst.sync.wire.groups import Backend, Operation, join, keep_past_exit, start_thread
from verst.sync.wire.shared_wire import SharedWire
from verst.sync.wire.wire import Slots, TransferError, Wire


class BlockLink:
    """One rank's link to one engine. Made by `open`; only one operation at a time may use it."""

    def __init__(self, engine: int, backend: Backend, sender: Sender, plan: Plan, slots: Slots) -> None:
        self.engine = engine
        self.plan = plan
        self.slots = slots
        self._backend: Backend | None = backend
        self._sender = sender

    @classmethod
    def open(
        cls,
        *,
        engine: int,
        host: str,
        port: int,
        name: str,
        rank: int,
        trainer_ranks: int,
        engine_ranks: int,
        backend: Literal["gloo", "nccl"],
        shared: bool = False,
        bucket_bytes: int,
        timeout_s: float,
        blocks: Blocks,
        parameters: Sequence[torch.Tensor],
        slots: Slots,
    ) -> Operation[BlockLink]:
        """Starts to join the group and to plan. Collective over the trainer's and the engine's ranks."""

        def meet() -> BlockLink:
            deadline = time.monotonic() + timeout_s
            if parameters[0].is_cuda:
                torch.cuda.set_device(parameters[0].device)  # the current device is per thread
            size = trainer_ranks + engine_ranks
            joined = join(host, port, name, rank, size, backend)
            wire = SharedWire(joined, parameters[0].device) if shared else Wire(joined)
            tables = wire.share(blocks.pack(), deadline)[:trainer_ranks]
            refusals = [r.decode() for r in wire.share(b"", deadline) if r]
            if refusals:
                raise TransferError(refusals[0])
            engine_tables = wire.share(empty_blocks().pack(), deadline)[trainer_ranks:]
            plan = make_plan(
                [Blocks.unpack(t) for t in tables],
                [Blocks.unpack(t) for t in engine_tables],
                bucket_bytes,
                rotation=engine,
            )
            sender = Sender(wire, schedule(plan, rank), parameters, slots)
            wire.attach(sender.memory, deadline)
            return cls(engine, wire.backend, sender, plan, slots)

        return Operation(f"joining group {name}", meet)

    def start(self, version: int, deadline: float) -> Operation[None]:
        """Starts to send a version. The parameters must not change until the operation is done."""
        return Operation(f"sending version {version}", partial(self._sender.send, version, deadline))

    def abandon(self) -> None:
        """Breaks the connections at once; the engine's side then fails by itself or at its own timeout."""
        self._sender.given_up.set()
        if self._backend is not None:
            keep_past_exit(self._backend)  # its destructor would wait for operations that never end
            start_thread(self._backend.abort, f"aborting the group of engine {self.engine}")
            self._backend = None
