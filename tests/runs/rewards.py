"""Hooks for tests: a reward that always says something, and functions that a user should not write."""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Sequence
from typing import Any

from verst.runtime.rewards import Answer, exact


def length(answer: Answer) -> float:
    return float(len(answer.text)) + sum(map(ord, answer.text)) / 1000


def raises(answer: Answer) -> float:
    return 1 / 0


def returns_nothing(group: Any) -> None:
    print("a filter that forgets its return", len(group.samples))


async def leaves(call: Any) -> None:
    sys.exit(3)


def one_short(groups: Sequence[Any]) -> list[list[float]]:
    return [group.rewards[1:] for group in groups]


def scalar_loss(batch: Any) -> Any:
    from verst.runtime.algorithms.losses import grpo
    from verst.runtime.algorithms.tokens import TokenLoss

    return TokenLoss(grpo(batch).loss.mean())


async def slow(answer: Answer) -> float:
    """As the recipe's own, after a moment, so that a rollout lasts long enough to be interrupted."""
    await asyncio.sleep(0.2 + 2.0 * (zlib.crc32(f"{answer.label}".encode()) % 100) / 100)
    return exact(answer)
