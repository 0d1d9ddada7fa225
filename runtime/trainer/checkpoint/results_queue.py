"""Starts the process that holds the results of Megatron's checkpoint writers, without importing the trainer in it.

Megatron spawns it at the first checkpoint, once for each rank. A spawned process imports the main module of its parent,
here the whole trainer: 5 s of CPU time in each rank, and memory that stays taken.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

from megatron.core.dist_checkpointing.strategies.filesystem_async import get_write_results_queue


def start_results_queue() -> None:
    """Starts this rank's process, if it has none. Megatron then finds it."""
    with _without_main_module():
        get_write_results_queue()


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hides the main module: a process that is spawned here imports none."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
