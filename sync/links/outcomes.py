"""Shares the outcome of work that each trainer rank did by itself: all results, or one rank's error on all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist


def attempt[T](act: Callable[[], T]) -> T | Exception:
    """Calls `act`; returns its result, or its OSError or ValueError instead of raising it."""
    try:
        return act()
    except (OSError, ValueError) as error:
        return error


def of_all[T](
    mine: T | Exception, rank: int, world: int, doing: str, group: dist.ProcessGroup | None = None
) -> list[T]:
    """Exchanges the results of `attempt`; returns all ranks' results in rank order. Collective.

    If a rank had an error, raises it on every rank, as OSError or ValueError: "trainer rank 3 cannot <doing>: …".
    """
    if isinstance(mine, Exception):
        text = f"trainer rank {rank} cannot {doing}: {mine}"
        mine = OSError(text) if isinstance(mine, OSError) else ValueError(text)
    found: list[T | Exception] = [mine] * world
    if world > 1:
        dist.all_gather_object(found, mine, group)
    good: list[T] = []
    for one in found:
        if isinstance(one, Exception):
            raise one
        good.append(one)
    return good
