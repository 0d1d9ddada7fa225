"""Requests in flight while new weights come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.engine import Engine


async def generate_through(engine: Engine, rounds: list[Callable[[], Awaitable[Any]]]) -> None:
    """Six callers generate on and on while each round brings the next version; each token must carry its own.

    Raises AssertionError, also when no request lasted from one version into another.
    """
    first, done = engine.version, asyncio.Event()

    async def generate_on_and_on(seed: int) -> list[np.ndarray]:
        found = []
        while not done.is_set():
            seed += 100
            sampling = SamplingConfig(max_new_tokens=256)
            found.append((await engine.generate([5, 9, 17], sampling, seed)).weight_versions)
        return found

    callers = [asyncio.create_task(generate_on_and_on(seed)) for seed in range(6)]
    for bring_next in rounds:
        await asyncio.sleep(0.2)
        await bring_next()
    done.set()
    spans = 0
    for caller in callers:
        found = await caller
        versions = np.concatenate(found)
        assert (np.diff(versions) >= 0).all(), "a request never goes back"
        assert set(versions.tolist()) <= set(range(first, first + len(rounds) + 1))
        spans += sum(len(set(versions.tolist())) > 1 for versions in found)
    assert spans, "some request was in flight when a version came"
