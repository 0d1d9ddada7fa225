"""Reward functions for tests: one that always says something, and those that a user should not write."""

from __future__ import annotations

from typing import Any


def length(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return float(len(response)) + sum(map(ord, response)) / 1000


def raises(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return 1 / 0


def not_a_number(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return float("nan")
