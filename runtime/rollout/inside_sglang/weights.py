"""Extends how SGLang's scheduler handles new weights. Runs inside SGLang.

- Prefix cache: requests are queued under a cache key that contains the weight version. Requests that are still waiting
  when new weights arrive get the new key. So no cache entry that old weights computed is reused under new weights,
  whether requests are in flight or not.
- Versions per token: the answer that completes a version says how many tokens each unfinished request had under the
  old weights.
- Verst's own orders, in `load_format` (`orders.py`): compare tensors instead of loading them, receive blocks, and load
  a version from a folder.
- FP8 tensors are broadcast as bytes, because the sender does so too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from verst.runtime.rollout.inside_sglang.blocks import BlockReceiver, share
from verst.runtime.rollout.inside_sglang.orders import (
    Arrived,
    CompareOrder,
    LinkOrder,
    LoadOrder,
    Order,
    Positions,
    ReceiveOrder,
    StageOrder,
    as_message,
    order_in,
)
from verst.runtime.rollout.inside_sglang.versions import load_version
from verst.runtime.rollout.inside_sglang.weight_compare import Comparison, WeightComparer
from verst.sync.links.broadcast import as_sent
from verst.sync.wire.wire import TransferError


def apply() -> None:
    """Patches this process."""
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

    queue_request = Scheduler._add_request_to_queue
    load = SchedulerWeightUpdaterManager.update_weights_from_distributed
    orders = _Orders()

    def add_request_to_queue(self: Any, req: Any, *args: Any, **kwargs: Any) -> None:
        _key_by_version(self, req)
        queue_request(self, req, *args, **kwargs)

    def update_weights_from_distributed(self: Any, recv_req: Any) -> Any:
        order = order_in(recv_req.load_format)
        if order is not None:
            return orders.obey(self, recv_req, order)
        output = load(self, recv_req)
        if output.success and recv_req.weight_version is not None:
            output.message = as_message(_begin_version(self.scheduler, recv_req.weight_version))
        return output

    broadcast = torch.distributed.broadcast

    def broadcast_as_sent(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return broadcast(as_sent(tensor), *args, **kwargs)

    torch.distributed.broadcast = broadcast_as_sent
    Scheduler._add_request_to_queue = add_request_to_queue
    SchedulerWeightUpdaterManager.update_weights_from_distributed = update_weights_from_distributed


def _version(scheduler: Any) -> str:
    return getattr(scheduler, "verst_weight_version", None) or str(scheduler.server_args.weight_version)


def _key_by_version(scheduler: Any, req: Any) -> None:
    if not hasattr(req, "verst_own_key"):
        req.verst_own_key = req.extra_key or ""
    req.extra_key = f"weights {_version(scheduler)}|{req.verst_own_key}"


def _begin_version(scheduler: Any, version: str) -> Positions:
    previous = _version(scheduler)
    scheduler.verst_weight_version = version
    tokens = {req.rid: len(req.output_ids) + late for req, late in _unfinished(scheduler)}
    for req in scheduler.waiting_queue:
        _key_by_version(scheduler, req)
    if scheduler.is_fully_idle():
        scheduler.flush_cache(empty_cache=False)
    return Positions(previous, tokens)


def _unfinished(scheduler: Any) -> Iterator[tuple[Any, int]]:
    """Yields every unfinished request, and how many of its tokens are computed but not yet in its output."""
    late: dict[str, int] = {}
    for batch, _ in getattr(scheduler, "result_queue", ()):
        for req in batch.reqs:
            late[req.rid] = late.get(req.rid, 0) + 1
    requests = [*scheduler.waiting_queue, *scheduler.running_batch.reqs]
    if scheduler.last_batch is not None:
        requests += scheduler.last_batch.reqs
    if scheduler.chunked_req is not None:
        requests.append(scheduler.chunked_req)
        late.pop(scheduler.chunked_req.rid, None)  # only the last chunk of a prompt yields a token
    seen: set[str] = set()
    for req in requests:
        if req.rid not in seen and not req.finished():
            seen.add(req.rid)
            yield req, late.get(req.rid, 0)


class _Orders:
    """Carries out Verst's orders in one rank."""

    def __init__(self) -> None:
        self._blocks = BlockReceiver()
        self._comparer: WeightComparer | None = None

    def obey(self, manager: Any, recv_req: Any, order: Order) -> Any:
        from sglang.srt.managers.io_struct import UpdateWeightsFromDistributedReqOutput

        try:
            answer = self._answer(manager, recv_req, order)
        except TransferError as error:
            return UpdateWeightsFromDistributedReqOutput(success=False, message=str(error))
        return UpdateWeightsFromDistributedReqOutput(success=True, message=as_message(answer))

    def _answer(self, manager: Any, recv_req: Any, order: Order) -> Any:
        match order:
            case CompareOrder():
                return self._compare(manager, recv_req, order)
            case LinkOrder():
                return self._blocks.link(manager, recv_req.group_name, order)
            case StageOrder():
                return self._blocks.stage(manager, recv_req.group_name, order)
            case ReceiveOrder():
                timing = self._blocks.receive(manager, recv_req.group_name, order)
                begun = _begin_version(manager.scheduler, str(order.version))
                return Arrived(begun.previous, begun.tokens, timing.transfer_s, timing.load_s)
            case LoadOrder():
                load_version(manager, order)
                return _begin_version(manager.scheduler, str(order.version))

    def _compare(self, manager: Any, recv_req: Any, order: CompareOrder) -> Comparison:
        runner = manager.tp_worker.model_runner
        group = runner.weight_updater._model_update_group[recv_req.group_name]
        bucket = []
        for name, dtype, shape in zip(recv_req.names, recv_req.dtypes, recv_req.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=runner.device)
            torch.distributed.broadcast(tensor, src=0, group=group)
            bucket.append((name, tensor))
        if order.first or self._comparer is None:
            self._comparer = WeightComparer(runner.model)
        self._comparer.compare(bucket)
        mine = msgspec.json.encode(_Compared(self._comparer.compared, self._comparer.report(order.last)))
        if order.last:
            self._comparer = None
        return _merge(
            [msgspec.json.decode(data, type=_Compared) for data in share(mine, manager.tp_cpu_group)]
        )


class _Compared(msgspec.Struct):
    """One rank's result of a comparison, sent to the other ranks."""

    names: list[str]  # the tensors of which the rank holds a part; under expert parallelism not all
    report: Comparison


def _merge(ranks: list[_Compared]) -> Comparison:
    """Merges the ranks' reports: each tensor is counted once, and the faults of every rank are kept."""
    merged = ranks[0].report
    merged.tensors = len({name for compared in ranks for name in compared.names})
    for rank, report in enumerate((compared.report for compared in ranks[1:]), start=1):
        merged.elements += report.elements
        merged.unequal_tensors += report.unequal_tensors
        merged.uncovered_parameters += report.uncovered_parameters
        merged.unequal += [f"rank {rank}: {name}" for name in report.unequal]
        merged.uncovered += [f"rank {rank}: {name}" for name in report.uncovered]
    return merged
