"""The routing that comes back is the one that generated the token, and hardly slows the engine. Runs inside SGLang.

SGLang writes a token's experts, and what its sparse attention goes to, beside its slot of the cache and reads them when
the request is over.

- A request that is retracted, to make room or for new weights, loses its slots and is computed once more: its tokens so
  far would come back with what the model chooses then. Their choices are set aside before.
- A batch's choices are copied to the host while the next one may overwrite them. The copy is made of a copy (so does
  SGLang from its pull request 34319 on).
- Where a request's slots are is read on the stream on which SGLang prepares batches. That waits for the batch which is
  being computed, a whole prefill if need be, and with it the scheduler. Here the read has a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class _Choices:
    """One kind of choices that SGLang takes down."""

    name: str  # of the request's field for them
    wanted: str  # of its field that asks for them
    start: str | None  # of its field that says where they begin
    capturer: Callable[[], Any]

    @property
    def kept(self) -> str:
        """The request's attribute for what was set aside: int32 [tokens, layers, K]."""
        return f"verst_{self.name}"


def apply() -> None:
    """Patches this process."""
    from sglang.srt.managers import schedule_batch
    from sglang.srt.managers.scheduler_components.batch_result_processor import (
        SchedulerBatchResultProcessor as Processor,
    )
    from sglang.srt.state_capturer.base import BaseTopkCapturer
    from sglang.srt.state_capturer.indexer_topk import get_global_indexer_capturer
    from sglang.srt.state_capturer.routed_experts import get_global_experts_capturer

    experts = _Choices(
        "routed_experts", "return_routed_experts", "routed_experts_start_len", get_global_experts_capturer
    )
    attended = _Choices("indexer_topk", "return_indexer_topk", None, get_global_indexer_capturer)
    release = schedule_batch.release_req
    end = BaseTopkCapturer.on_forward_end

    def release_req(*, req: Any, req_to_token_pool: Any, **others: Any) -> None:
        for choices in (experts, attended):
            if getattr(req, choices.wanted):
                _keep(choices, req, req_to_token_pool)
        release(req=req, req_to_token_pool=req_to_token_pool, **others)

    def on_forward_end(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken = end(self, *args, **kwargs)
        if taken is not None:  # None: it is on the host already
            taken.map_device_tensors(torch.clone)
        return taken

    schedule_batch.release_req = release_req
    BaseTopkCapturer.on_forward_end = on_forward_end
    Processor._maybe_collect_routed_experts = _collecting(experts, Processor._maybe_collect_routed_experts)
    Processor._maybe_collect_indexer_topk = _collecting(attended, Processor._maybe_collect_indexer_topk)


def _collecting(choices: _Choices, collect: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def maybe_collect(self: Any, req: Any) -> None:
        with _ahead_of_the_batch(self.req_to_token_pool.req_to_token.device):
            collect(self, req)
        kept, found = getattr(req, choices.kept, None), getattr(req, choices.name)
        if kept is not None and found is not None:
            kept = kept[getattr(req, choices.start) if choices.start else 0 :]
            count = min(len(kept), len(found))
            found[:count] = kept[:count]

    return maybe_collect


def _ahead_of_the_batch(device: torch.device) -> AbstractContextManager[Any]:
    """Reads within do not wait for the batch that is being computed. Only for what was written before a batch whose
    results have come, as the slots of a request that is over were. (If the prefix cache has just exchanged some, the
    old ones have the same tokens' choices until the results of a later batch.)"""
    return torch.cuda.stream(_stream(device)) if device.type == "cuda" else nullcontext()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Of high priority: those come from a pool of their own, in which none of SGLang's streams is."""
    return torch.cuda.Stream(device, priority=-1)


def _keep(choices: _Choices, req: Any, req_to_token_pool: Any) -> None:
    """Sets aside the choices of the tokens that have been computed; those of an earlier retraction stay."""
    capturer = choices.capturer()
    computed = min(len(req.origin_input_ids) + len(req.output_ids) - 1, req.kv_committed_len)
    if capturer is None or req.req_pool_idx is None or computed < 1:
        return
    rows = capturer.get_topk(
        req_pool_idx=req.req_pool_idx, seqlen=computed + 1, req_to_token_pool=req_to_token_pool
    )
    kept = getattr(req, choices.kept, None)
    setattr(req, choices.kept, rows if kept is None else torch.cat([kept, rows[len(kept) :]]))
