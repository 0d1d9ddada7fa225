"""NCCL alone between two GPUs: the ceiling for weight transfers, with the settings that SGLang has."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from verst.sync.wire.groups import NCCL_ENVIRONMENT

SIZES = (1 << 28, 1 << 29, 1 << 30)
_REPEATS = 20


def measure() -> dict[str, float]:
    """GB/s of broadcast and of send/recv by message size."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results: Any = context.Queue()
        processes = [
            context.Process(target=_rank, args=(rank, str(Path(folder) / "store"), results))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        found = results.get(timeout=120)
        for process in processes:
            process.join(30)
    return found


def _rank(rank: int, store: str, results: Any) -> None:
    os.environ.update(NCCL_ENVIRONMENT)
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    found = {}
    for size in SIZES:
        buffer = torch.ones(size, dtype=torch.uint8, device="cuda")

        def pass_on(buffer: torch.Tensor = buffer) -> None:
            operation = dist.isend if rank == 0 else dist.irecv
            dist.batch_isend_irecv([dist.P2POp(operation, buffer, 1 - rank)])[0].wait()

        def send_all(buffer: torch.Tensor = buffer) -> None:
            dist.broadcast(buffer, src=0)

        for name, operation in (("send_recv", pass_on), ("broadcast", send_all)):
            for _ in range(3):
                operation()
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(_REPEATS):
                operation()
            end.record()
            torch.cuda.synchronize()
            found[f"{name}_{size >> 20}_mib_gb_per_s"] = size * _REPEATS / begin.elapsed_time(end) / 1e6
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()
