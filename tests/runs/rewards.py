"""Reward functions for tests: one that always says something, and those that a user should not write."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

from verst.runtime.rewards import exact


def length(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return float(len(response)) + sum(map(ord, response)) / 1000


def raises(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return 1 / 0


def not_a_number(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return float("nan")


async def slow(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """As the recipe's own, after a moment, so that a rollout lasts long enough to be interrupted."""
    await asyncio.sleep(0.2 + 2.0 * (zlib.crc32(f"{label}".encode()) % 100) / 100)
    return exact(response, label, metadata)
