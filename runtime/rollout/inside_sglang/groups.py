"""An engine with several data-parallel groups is idle when all of them are. Runs inside SGLang.

With data-parallel attention each group of ranks has requests and a prefix cache of its own. SGLang tells each to empty
its cache, and answers with what the first said: that it had nothing in flight says nothing of the others, and SGLang
ends when it is asked for the memory of one that has.
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
