"""Tokens keep the routing of the weights that generated them, after a retraction too. Runs inside SGLang.

SGLang writes a token's experts beside its slot of the cache and reads them when the request is over. A request that is
retracted, to make room or for new weights, loses its slots and is computed once more: its tokens so far would come back
with what the model chooses then. Their experts are set aside before.
"""

from __future__ import annotations

from typing import Any

import torch

_KEPT = "verst_routing"  # an attribute of SGLang's request: int32 [tokens, layers, K]


def apply() -> None:
    """Patches this process."""
    from sglang.srt.managers import schedule_batch
    from sglang.srt.managers.scheduler_components.batch_result_processor import (
        SchedulerBatchResultProcessor,
    )

    release = schedule_batch.release_req
    collect = SchedulerBatchResultProcessor._maybe_collect_routed_experts

    def release_req(*, req: Any, req_to_token_pool: Any, **others: Any) -> None:
        if req.return_routed_experts:
            _keep(req, req_to_token_pool)
        release(req=req, req_to_token_pool=req_to_token_pool, **others)

    def maybe_collect_routed_experts(self: Any, req: Any) -> None:
        collect(self, req)
        kept = getattr(req, _KEPT, None)
        if kept is not None and req.routed_experts is not None:
            kept = kept[req.routed_experts_start_len :]
            count = min(len(kept), len(req.routed_experts))
            req.routed_experts[:count] = kept[:count]

    schedule_batch.release_req = release_req
    SchedulerBatchResultProcessor._maybe_collect_routed_experts = maybe_collect_routed_experts


def _keep(req: Any, req_to_token_pool: Any) -> None:
    """Sets aside the experts of the tokens that have been computed; those of an earlier retraction stay."""
    from sglang.srt.state_capturer.routed_experts import get_global_experts_capturer

    capturer = get_global_experts_capturer()
    computed = min(len(req.origin_input_ids) + len(req.output_ids) - 1, req.kv_committed_len)
    if capturer is None or req.req_pool_idx is None or computed < 1:
        return
    rows = capturer.get_topk(
        req_pool_idx=req.req_pool_idx, seqlen=computed + 1, req_to_token_pool=req_to_token_pool
    )
    kept = getattr(req, _KEPT, None)
    setattr(req, _KEPT, rows if kept is None else torch.cat([kept, rows[len(kept) :]]))
