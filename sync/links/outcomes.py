"""What trainer ranks have done each by itself: all of it, or on all of them what was in the way of one."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist


def attempt[T](act: Callable[[], T]) -> T | Exception:
    """What it returns, or what a disk or a format has against it."""
    try:
        return act()
    except (OSError, ValueError) as error:
        return error


def of_all[T](
    mine: T | Exception, rank: int, world: int, doing: str, group: dist.ProcessGroup | None = None
) -> list[T]:
    """What each rank has. Collective.

    Raises on every rank, when one had an error, OSError or ValueError: "trainer rank 3 cannot <doing>: …".
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
