"""A request attends, while it lasts, to what was in the prefix cache when it began and to what it computed itself. Runs
inside SGLang, for requests that return their routing.

Stock SGLang computes the prompt of siblings that come together once for each, and then exchanges the cache of all but
one of them for that one's; of a sibling that comes later, the last token of its prompt, which it has computed for its
scores. What such a request generated first was drawn after its own computation, routed in its own way; the rest
attends to the other's. No single routing replays that.

- While a prefix is being computed, other requests that begin alike wait for it, and take it from the cache.
- What a request has computed itself it keeps to its end, if the cache has got the same from another meanwhile. At its
  end SGLang caches what the cache has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_COMPUTING = "verst_computing"  # an attribute of SGLang's cache: requests whose prefixes are not in it yet


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
                return AddReqResult.CONTINUE  # with the next request; this one waits
        return add(self, req, *args, **kwargs)

    def cache_unfinished_req(self: Any, req: Any, chunked: bool = False) -> None:
        if concerns(self, req) and _cached_by_another(self, req):
            slots = self.req_to_token_pool.req_to_token[req.req_pool_idx, : len(req.get_fill_ids())]
            req.prefix_indices = slots.long().clone()  # its next chunk goes on behind them
        else:
            cache_unfinished(self, req, chunked=chunked)

    Scheduler._get_new_batch_prefill_raw = get_new_batch_prefill_raw
    PrefillAdder.add_one_req = add_one_req
    RadixCache.cache_unfinished_req = cache_unfinished_req


def _computing(scheduler: Any) -> Iterator[Any]:
    """Requests of earlier batches that still compute their prefixes, or whose results wait to be processed."""
    if scheduler.chunked_req is not None:
        yield scheduler.chunked_req
    for batch, _ in getattr(scheduler, "result_queue", ()):
        if batch.forward_mode.is_extend():
            yield from (req for req in batch.reqs if not req.finished())


def _begins_like(req: Any, other: Any, page: int) -> bool:
    """Whether `req` would compute a page that `other` computes."""
    if other is req or other.extra_key != req.extra_key:
        return False
    mine, theirs = req.full_untruncated_fill_ids, other.full_untruncated_fill_ids
    here = len(req.prefix_indices)  # of it, in the cache
    end = here // page * page + page
    # A request's last token is computed whatever the cache holds: for its scores.
    if end > len(mine) - 1 or end > len(theirs):
        return False
    return mine[here:end] == theirs[here:end] and mine[:here] == theirs[:here]


def _cached_by_another(cache: Any, req: Any) -> bool:
    """Whether the cache holds some of what the request has computed and not put there itself."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    key = RadixKey(req.get_fill_ids(), req.extra_key, is_bigram=cache.is_eagle).page_aligned(cache.page_size)
    return len(cache.match_prefix(MatchPrefixParams(key=key)).device_indices) > req.cache_protected_len
