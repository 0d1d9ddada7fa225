"""Returns each token's original routing with its request, at little cost for the engine. Runs inside SGLang.

SGLang stores a token's experts, and the positions that its sparse attention chose, beside its slot of the cache. It
reads them when the request is over. Verst changes three things:

- A request that is retracted, to make room or for new weights, loses its slots and is computed again. Its tokens so far
  would then come back with the choices of the second computation. So their first choices are set aside before.
- While a batch's choices are being copied to the host, the next batch may overwrite them. So they are first copied on
  the device, as SGLang does from its pull request 34319 on.
- SGLang reads the places of a request's slots on the stream on which it prepares batches. The read then waits for the
  batch that is being computed, which may be a whole prefill, and the scheduler waits too. Here the read has a stream
  of its own.
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
    """A kind of choices that SGLang records; the strings are names of fields of a request."""

    name: str  # the field that holds the choices
    wanted: str  # the field that asks for them
    start: str | None  # the field that says at which token they begin
    capturer: Callable[[], Any]

    @property
    def kept(self) -> str:
        """The name of the request's attribute for choices that were set aside: int32 [tokens, layers, K]."""
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
        if taken is not None:  # None: the choices are on the host already
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
    """A context in which reads do not wait for the batch that is being computed.

    Only for data written before a batch whose results have arrived. The slots of a finished request are such data. (If
    the prefix cache has just exchanged some slots, the old ones hold the choices of the same tokens until the results
    of a later batch arrive.)
    """
    return torch.cuda.stream(_stream(device)) if device.type == "cuda" else nullcontext()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of high priority. Those come from a separate pool, so it is none of SGLang's streams."""
    return torch.cuda.Stream(device, priority=-1)


def _keep(choices: _Choices, req: Any, req_to_token_pool: Any) -> None:
    """Sets aside the choices of the tokens computed so far; choices from an earlier retraction are kept."""
    capturer = choices.capturer()
    computed = min(len(req.origin_input_ids) + len(req.output_ids) - 1, req.kv_committed_len)
    if capturer is None or req.req_pool_idx is None or computed < 1:
        return
    rows = capturer.get_topk(
        req_pool_idx=req.req_pool_idx, seqlen=computed + 1, req_to_token_pool=req_to_token_pool
    )
    kept = getattr(req, choices.kept, None)
    setattr(req, choices.kept, rows if kept is None else torch.cat([kept, rows[len(kept) :]]))
