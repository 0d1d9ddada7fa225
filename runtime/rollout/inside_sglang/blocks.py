"""The engine's end of a block link: plans with the trainer's ranks, then receives versions. Runs inside SGLang.

Each order goes to all of an engine's tensor-parallel ranks, and they answer together. If one rank fails, the engine
fails, and its parameters then belong to no version.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from verst.runtime.rollout.inside_sglang.orders import Linked, LinkOrder, ReceiveOrder, StageOrder
from verst.runtime.rollout.inside_sglang.repacks import require_as_loaded
from verst.runtime.rollout.inside_sglang.second_buffer import SecondBuffer
from verst.runtime.rollout.inside_sglang.weight_compare import left_as_loaded
from verst.sync.layout.blocks import Blocks, empty_blocks
from verst.sync.layout.load_trace import TraceError, trace_load
from verst.sync.layout.plan import make_plan
from verst.sync.layout.schedule import schedule
from verst.sync.wire.exchange import Receiver
from verst.sync.wire.shared_wire import SharedWire
from verst.sync.wire.wire import TransferError, Wire


@dataclass(frozen=True)
class Timing:
    """How long a rank took, in seconds."""

    transfer_s: float
    load_s: float


class BlockReceiver:
    """One engine rank's link to the trainer's ranks, once it is made by `link`."""

    def __init__(self) -> None:
        self._receiver: Receiver | None = None
        self._group = ""
        self._second: SecondBuffer | None = None

    def link(self, manager: Any, group_name: str, order: LinkOrder) -> Linked:
        """Plans with all ranks of the group. Raises TransferError with the reasons if any rank fails."""
        deadline = time.monotonic() + order.timeout_s
        runner = manager.tp_worker.model_runner
        self._receiver = self._second = None
        began = time.monotonic()

        def join() -> Linked:
            wire = _wire(runner.weight_updater._model_update_group[group_name], order.shared)
            self._receiver, self._second, buckets = _open(wire, runner.model, order, deadline)
            extra = self._second.nbytes if self._second else 0
            return Linked(buckets, self._receiver.nbytes + extra, time.monotonic() - began)

        self._group = group_name
        return max(together(join, manager.tp_cpu_group, Linked), key=lambda linked: linked.slot_bytes)

    def stage(self, manager: Any, group_name: str, order: StageOrder) -> None:
        """Starts to receive a version into the second buffer. Raises TransferError if that cannot be started."""
        deadline = time.monotonic() + order.timeout_s

        def begin() -> None:
            receiver = self._linked(group_name)
            if self._second is None:
                raise TransferError(f"group {group_name} was linked without a second buffer")
            done = Path(order.done) if torch.distributed.get_rank(manager.tp_cpu_group) == 0 else None
            self._second.fill(lambda: receiver.receive(order.version, deadline), order.version, done)

        together(begin, manager.tp_cpu_group, type(None))

    def receive(self, manager: Any, group_name: str, order: ReceiveOrder) -> Timing:
        """Receives a version, or takes over the staged one. Raises TransferError if that fails or is late."""
        deadline = time.monotonic() + order.timeout_s

        def receive() -> Timing:
            receiver = self._linked(group_name)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # running kernels still read the parameters
            began = time.monotonic()
            if self._second is None:
                receiver.receive(order.version, deadline)
                transfer_s = time.monotonic() - began
            else:
                transfer_s = self._second.wait(order.version, deadline)
            began = time.monotonic()
            if self._second is not None:
                self._second.take_over()
            model = manager.tp_worker.model_runner.model
            if hasattr(model, "post_load_weights"):
                model.post_load_weights()  # updates the tensors that the model derives from its parameters
            return Timing(transfer_s, time.monotonic() - began)

        timings = together(receive, manager.tp_cpu_group, Timing)
        return Timing(max(t.transfer_s for t in timings), max(t.load_s for t in timings))

    def _linked(self, group_name: str) -> Receiver:
        if self._receiver is None or group_name != self._group:
            raise TransferError(f"group {group_name} carries no blocks: there was no link order for it")
        return self._receiver


def _open(
    wire: Wire, model: torch.nn.Module, order: LinkOrder, deadline: float
) -> tuple[Receiver, SecondBuffer | None, int]:
    tables = [Blocks.unpack(t) for t in wire.share(empty_blocks().pack(), deadline)[: order.trainer_ranks]]
    tensors = {name: tensor for table in tables for name, tensor in table.tensors().items()}
    refusal, mine = b"", empty_blocks()
    parameters: list[torch.Tensor] = []
    try:
        require_as_loaded(model)
        mine, parameters = trace_load(model, tensors, left_as_loaded)
    except TraceError as error:
        refusal = str(error).encode()
    refusals = wire.share(refusal, deadline)
    if any(refusals):
        why = next(r for r in refusals if r).decode()
        raise TraceError(f"{why}. It needs whole tensors: weights.transport=broadcast, disk or delta")
    engine = [Blocks.unpack(t) for t in wire.share(mine.pack(), deadline)[order.trainer_ranks :]]
    plan = make_plan(tables, engine, order.bucket_bytes, order.rotation)
    second = SecondBuffer(parameters) if order.double_buffer else None
    into = parameters if second is None else second.parameters
    receiver = Receiver(wire, schedule(plan, wire.backend.rank()), into)
    wire.attach(receiver.memory, deadline)
    return receiver, second, plan.buckets


def _wire(group: Any, shared: bool) -> Wire:
    cpu = torch.device("cpu")
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else cpu
    if shared:
        return SharedWire(group._get_backend(cpu), device)
    try:
        return Wire(group._get_backend(device))
    except RuntimeError:  # the engine has a GPU, but the group uses gloo
        return Wire(group._get_backend(cpu))


class _Outcome(msgspec.Struct):
    """One rank's outcome, sent to the other ranks."""

    failure: str | None
    value: Any = None


def together[T](act: Callable[[], T], group: Any, kind: type[T]) -> list[T]:
    """Calls `act` on every rank; returns all results in rank order. Collective over `group`.

    Raises TransferError with the reasons if any rank failed.
    """
    try:
        mine = _Outcome(None, act())
    except (RuntimeError, ValueError) as error:  # from the exchange, the trace, the plan or torch
        mine = _Outcome(str(error) or type(error).__name__)
    outcomes = [msgspec.json.decode(data, type=_Outcome) for data in share(msgspec.json.encode(mine), group)]
    failures = [f"rank {rank}: {o.failure}" for rank, o in enumerate(outcomes) if o.failure is not None]
    if failures:
        raise TransferError("; ".join(dict.fromkeys(failures)))
    return [msgspec.convert(o.value, kind) for o in outcomes]


def share(data: bytes, group: Any) -> list[bytes]:
    """Exchanges JSON between all ranks of a gloo group; returns every rank's, in rank order."""
    ranks = torch.distributed.get_world_size(group)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks)]
    torch.distributed.all_gather(sizes, torch.tensor([len(data)]), group=group)
    width = max(int(size) for size in sizes)
    rows = [torch.zeros(width, dtype=torch.uint8) for _ in range(ranks)]
    padded = torch.frombuffer(bytearray(data.ljust(width, b" ")), dtype=torch.uint8)
    torch.distributed.all_gather(rows, padded, group=group)
    return [row.numpy().tobytes() for row in rows]
