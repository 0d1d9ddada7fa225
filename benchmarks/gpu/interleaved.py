"""Ways of doing the same thing, measured in turns: what one costs more than another shows below the noise of either."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(
    arms: dict[str, Callable[[], float]],
    rounds: int,
    budget_s: float,
    note: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Calls every arm once a round, each round in another order, for at most `rounds` or `budget_s` seconds; `note`
    gets the figures after each round. The first arm is what the others are compared with.

    A round's ratio is taken within the round, so what changes slowly (clocks, temperature) falls out of it.
    """
    values: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    until = time.monotonic() + budget_s
    found: dict[str, Any] = {}
    for number in range(rounds):
        for at in range(len(names)):
            name = names[(at + number) % len(names)]
            values[name].append(arms[name]())
        found = figures(values)
        note(found)
        if time.monotonic() > until:
            break
    return found


def figures(values: dict[str, list[float]]) -> dict[str, Any]:
    """Each arm's median and quartiles, and its ratio to the first arm's with a 95 % interval of the median."""
    first = next(iter(values.values()))
    found: dict[str, Any] = {"rounds": len(first)}
    for name, mine in values.items():
        found[name] = {"median": statistics.median(mine), "quartiles": _quartiles(mine), "all": mine}
        if mine is not first:
            ratios = [one / base for one, base in zip(mine, first, strict=True)]
            found[name] |= {"ratio_median": statistics.median(ratios), "ratio_interval": interval(ratios)}
    return found


def interval(values: list[float], draws: int = 2000) -> list[float]:
    """The bootstrap's 95 % interval of the median."""
    pick = random.Random(0)
    medians = sorted(statistics.median(pick.choices(values, k=len(values))) for _ in range(draws))
    return [medians[round(0.025 * draws)], medians[round(0.975 * draws) - 1]]


def _quartiles(values: list[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]
