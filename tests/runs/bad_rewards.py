"""Reward functions that a user should not write."""

from __future__ import annotations


def raises(*args, **kwargs) -> float:
    return 1 / 0


def not_a_number(*args, **kwargs) -> float:
    return float("nan")
