"""Hooks for tests: a reward that always says something, and functions that a user should not write."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from verst.runtime.rewards import exact


def length(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return float(len(response)) + sum(map(ord, response)) / 1000


def raises(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return 1 / 0


def returns_nothing(group: Any) -> None:
    print("a filter that forgets its return", len(group.samples))


async def leaves(engine: Any, prompt: Any, sampling: Any, seed: Any) -> None:
    sys.exit(3)


def one_short(groups: Sequence[Any]) -> list[list[float]]:
    return [group.rewards[1:] for group in groups]


def scalar_loss(batch: Any) -> Any:
    from verst.runtime.algorithms.losses import grpo
    from verst.runtime.algorithms.tokens import TokenLoss

    return TokenLoss(grpo(batch).loss.mean())


async def slow(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """As the recipe's own, after a moment, so that a rollout lasts long enough to be interrupted."""
    await asyncio.sleep(0.2 + 2.0 * (zlib.crc32(f"{label}".encode()) % 100) / 100)
    return exact(response, label, metadata)
