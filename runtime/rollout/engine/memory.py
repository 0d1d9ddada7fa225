"""Releases an engine's GPU memory while the trainer works on the same GPU (the colocated layout)."""

from __future__ import annotations

from verst.runtime.messages.jobs import Hold
from verst.runtime.rollout.engine.engine import Engine

_TIMEOUT_S = 240.0  # less than the controller's deadline for the whole change
# For each amount that is held, SGLang's names of the memory that is released. CUDA graphs are always kept: they are
# small, and releasing them is experimental in 0.5.17 (SGLANG_MEMORY_SAVER_CUDA_GRAPH).
_RELEASED: dict[Hold, frozenset[str]] = {
    "all": frozenset(),
    "weights": frozenset({"kv_cache"}),
    "nothing": frozenset({"kv_cache", "weights"}),
}


class EngineMemory:
    """Remembers which memory is released, because SGLang ends if it is asked to take memory that it has."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.holds: Hold = "all"

    async def hold(self, what: Hold) -> None:
        """Releases or takes memory until the engine holds `what`. After an EngineError the engine is unusable."""
        now, then = _RELEASED[self.holds], _RELEASED[what]
        if more := then - now:
            await self._engine.release_memory(sorted(more), _TIMEOUT_S)
        if less := now - then:
            await self._engine.resume_memory(sorted(less), _TIMEOUT_S)
        self.holds = what
