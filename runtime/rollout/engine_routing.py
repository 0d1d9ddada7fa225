"""Tokens keep the routing of the weights that generated them, after a retraction too. Runs inside SGLang.

SGLang writes a token's experts, and what its sparse attention goes to, beside its slot of the cache and reads them when
the request is over. A request that is retracted, to make room or for new weights, loses its slots and is computed once
more: its tokens so far would come back with what the model chooses then. Their choices are set aside before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    from sglang.srt.state_capturer.indexer_topk import get_global_indexer_capturer
    from sglang.srt.state_capturer.routed_experts import get_global_experts_capturer

    experts = _Choices(
        "routed_experts", "return_routed_experts", "routed_experts_start_len", get_global_experts_capturer
    )
    attended = _Choices("indexer_topk", "return_indexer_topk", None, get_global_indexer_capturer)
    release = schedule_batch.release_req

    def release_req(*, req: Any, req_to_token_pool: Any, **others: Any) -> None:
        for choices in (experts, attended):
            if getattr(req, choices.wanted):
                _keep(choices, req, req_to_token_pool)
        release(req=req, req_to_token_pool=req_to_token_pool, **others)

    schedule_batch.release_req = release_req
    Processor._maybe_collect_routed_experts = _collecting(experts, Processor._maybe_collect_routed_experts)
    Processor._maybe_collect_indexer_topk = _collecting(attended, Processor._maybe_collect_indexer_topk)


def _collecting(choices: _Choices, collect: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def maybe_collect(self: Any, req: Any) -> None:
        collect(self, req)
        kept, found = getattr(req, choices.kept, None), getattr(req, choices.name)
        if kept is not None and found is not None:
            kept = kept[getattr(req, choices.start) if choices.start else 0 :]
            count = min(len(kept), len(found))
            found[:count] = kept[:count]

    return maybe_collect


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
