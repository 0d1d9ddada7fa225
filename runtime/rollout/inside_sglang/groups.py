"""Makes flush_cache fail unless all data-parallel groups of an engine are idle. Runs inside SGLang.

With data-parallel attention, each group of ranks has its own requests and prefix cache. SGLang tells all groups to
empty their caches, but returns only the first group's answer. That group may be idle while another has requests in
flight, and SGLang ends if it is then asked to release memory.
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Patches this process."""
    from sglang.srt.managers.io_struct import FlushCacheReqInput
    from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin

    async def flush_cache(self: Any, timeout_s: float | None = None) -> Any:
        self.auto_create_handle_loop()
        answers = await self.flush_cache_communicator(FlushCacheReqInput(timeout_s=timeout_s))
        return next((answer for answer in answers if not answer.success), answers[0])

    TokenizerControlMixin.flush_cache = flush_cache
