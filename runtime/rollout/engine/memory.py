"""What an engine keeps of its GPU memory while the trainer works on the same GPU (the colocated layout)."""

from __future__ import annotations

from verst.runtime.messages.jobs import Hold
from verst.runtime.rollout.engine.engine import Engine

_TIMEOUT_S = 240.0  # less than the controller waits for the whole of it
# By what is held, SGLang's names of what is not. Its CUDA graphs stay: they are small, and to release them too is
# an experiment of 0.5.17's (SGLANG_MEMORY_SAVER_CUDA_GRAPH).
_RELEASED: dict[Hold, frozenset[str]] = {
    "all": frozenset(),
    "weights": frozenset({"kv_cache"}),
    "nothing": frozenset({"kv_cache", "weights"}),
}


class EngineMemory:
    """Knows what is released: SGLang ends when it is asked to take what it has."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.holds: Hold = "all"

    async def hold(self, what: Hold) -> None:
        """Gives back, or takes again, what is asked for. Raises EngineError; the engine is then of no use."""
        now, then = _RELEASED[self.holds], _RELEASED[what]
        if more := then - now:
            await self._engine.release_memory(sorted(more), _TIMEOUT_S)
        if less := now - then:
            await self._engine.resume_memory(sorted(less), _TIMEOUT_S)
        self.holds = what
