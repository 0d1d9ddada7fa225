"""Keeps a request's cache unchanged while it runs, so that one routing describes it. Runs inside SGLang.

A request attends to the cached prefix that it found when it began, and to the tokens that it computed itself. This
applies to requests that return their routing.

In stock SGLang, siblings that arrive together each compute their common prompt. Then the cache entries of all but one
are exchanged for those of that one. A sibling that arrives later has the last token of its prompt exchanged, which it
computed for its scores. The first token that such a request generates follows its own computation and routing, but
later tokens attend to those of its sibling. No single routing can replay that. So Verst makes two changes:

- While a prefix is being computed, other requests that begin in the same way wait for it and take it from the cache.
- A request keeps its own computation until its end, even if the cache has got the same tokens from another request in
  the meantime. At its end SGLang caches the tokens that are not in the cache yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_COMPUTING = (
    "verst_computing"  # the attribute of SGLang's cache for requests whose prefixes are not in it yet
)


def apply() -> None:
    """Patches this process."""
    from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.mem_cache.radix_cache import RadixCache

    new_batch = Scheduler._get_new_batch_prefill_raw
    add = PrefillAdder.add_one_req
    cache_unfinished = RadixCache.cache_unfinished_req

    def concerns(cache: Any, req: Any) -> bool:
        return req.return_routed_experts and isinstance(cache, RadixCache) and not cache.disable

    def get_new_batch_prefill_raw(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(self.tree_cache, _COMPUTING, list(_computing(self)))
        return new_batch(self, *args, **kwargs)

    def add_one_req(self: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
        if concerns(self.tree_cache, req):
            others = [*self.can_run_list, *getattr(self.tree_cache, _COMPUTING, ())]
            if any(_begins_like(req, other, self.page_size) for other in others):
                return AddReqResult.CONTINUE  # goes on with the next request, while this one waits
        return add(self, req, *args, **kwargs)

    def cache_unfinished_req(self: Any, req: Any, chunked: bool = False) -> None:
        if concerns(self, req) and _cached_by_another(self, req):
            slots = self.req_to_token_pool.req_to_token[req.req_pool_idx, : len(req.get_fill_ids())]
            req.prefix_indices = slots.long().clone()  # its next chunk follows them
        else:
            cache_unfinished(self, req, chunked=chunked)

    Scheduler._get_new_batch_prefill_raw = get_new_batch_prefill_raw
    PrefillAdder.add_one_req = add_one_req
    RadixCache.cache_unfinished_req = cache_unfinished_req


def _computing(scheduler: Any) -> Iterator[Any]:
    """Requests of earlier batches that are still computing their prefixes, or whose results are not processed yet."""
    if scheduler.chunked_req is not None:
        yield scheduler.chunked_req
    for batch, _ in getattr(scheduler, "result_queue", ()):
        if batch.forward_mode.is_extend():
            yield from (req for req in batch.reqs if not req.finished())


def _begins_like(req: Any, other: Any, page: int) -> bool:
    """Whether `req` would compute a page that `other` is computing."""
    if other is req or other.extra_key != req.extra_key:
        return False
    mine, theirs = req.full_untruncated_fill_ids, other.full_untruncated_fill_ids
    here = len(req.prefix_indices)  # how much of it is in the cache
    end = here // page * page + page
    # A request's last token is always computed, cached or not, for its scores.
    if end > len(mine) - 1 or end > len(theirs):
        return False
    return mine[here:end] == theirs[here:end] and mine[:here] == theirs[:here]


def _cached_by_another(cache: Any, req: Any) -> bool:
    """Whether the cache holds tokens that the request has computed, but that another request put there."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(req.get_fill_ids(), req.extra_key, is_bigram=cache.is_eagle).page_aligned(cache.page_size)
    return len(cache.match_prefix(MatchPrefixParams(key=key)).device_indices) > req.cache_protected_len
