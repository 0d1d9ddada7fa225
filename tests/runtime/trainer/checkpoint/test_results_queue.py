"""The process of Megatron's checkpoint results starts without the trainer's main module, and does its work."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec

from tests.sync.world import run_world


def _start_where_main_cannot_be_imported(rank: int, world: int, store: str) -> None:
    from megatron.core.dist_checkpointing.strategies.filesystem_async import get_write_results_queue
    from torch.distributed.checkpoint.metadata import MetadataIndex

    from verst.runtime.trainer.checkpoint.results_queue import start_results_queue

    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__spec__ = ModuleSpec("no_such_module", None)  # a process that imported it would end at once
    start_results_queue()
    assert sys.modules["__main__"] is main
    queue = get_write_results_queue()
    queue.put(MetadataIndex("weight", [2]))
    assert queue.get(timeout=60) == MetadataIndex("weight", [2])


def test_it_does_not_import_the_main_module() -> None:
    run_world(1, _start_where_main_cannot_be_imported)
