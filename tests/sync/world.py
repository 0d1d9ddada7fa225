"""Runs a function in a small Megatron world of real processes on gloo, with the trainer's own models.

The processes are forked from a server that has imported torch and Megatron once for the whole test session.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

# Options of every tiny model here. Values of `sizes` in `build` come on top.
_OPTIONS: dict[str, Any] = {"seed": 7, "use-cpu-initialization": True}
_ROOT = str(Path(__file__).parents[2])


@functools.cache
def forked() -> ForkServerContext:
    """What starts processes that have imported torch and Megatron already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sync.warm_imports"])
    path = os.environ.get("PYTHONPATH")
    # Python before 3.12.3 does not pass sys.path on to the server, which would then import nothing, silently.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, path]))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return context


def run_world(world: int, target: Callable[..., None], *args: Any, timeout: float = 150) -> None:
    """Calls `target(rank, world, store_path, *args)` in `world` processes; fails with their tracebacks."""
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        outcomes = [str(Path(folder) / f"failure-{rank}") for rank in range(world)]
        processes = [
            forked().Process(
                target=_child, args=(outcomes[rank], target, rank, world, store, args), daemon=False
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
        failures = [Path(path).read_text() for path in outcomes if os.path.exists(path)]
        assert not failures, "\n".join(failures)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * world, f"exit codes {codes} after {timeout} s at most"


def wait_for(answers: Iterable[Path]) -> None:
    """Until the answers of the world before are there.

    A rank that took no part in the worlds before would otherwise wait in the next one, longer than its start may take.
    `run_world` ends the wait with the process.
    """
    while not all(answer.exists() for answer in answers):
        time.sleep(0.1)


def _wait(processes: list[Any], deadline: float) -> None:
    """Until all have ended, one has failed, or the deadline."""
    while time.monotonic() < deadline:
        codes = [process.exitcode for process in processes]
        if None not in codes or any(codes):
            return
        time.sleep(0.05)


def _child(outcome: str, target: Callable[..., None], rank: int, world: int, store: str, args: Any) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)
    try:
        target(rank, world, store, *args)
    except BaseException:
        Path(outcome).write_text(f"rank {rank}:\n{traceback.format_exc()}")
        _end(1)
    _end(0)


def _end(status: int) -> None:
    """Ends at once: gloo's threads may still hold connections to a rank that has ended."""
    for child in multiprocessing.active_children():  # Megatron's queue server, which would outlive us
        child.kill()
        child.join()
    os._exit(status)


class World:
    """This process's Megatron world, which can be split anew for every layout that a test tries."""

    def __init__(self, rank: int, world: int, store: str) -> None:
        from verst.runtime.trainer.model import cpu_adapter

        cpu_adapter.apply()
        import torch.distributed as dist

        from verst.runtime.trainer.parallel import Parallel

        self.rank, self.world = rank, world
        self.parallel = Parallel(rank, world, dist.FileStore(store, world), timeout_s=100)
        self.parallel.connect()

    @staticmethod
    def _forget_groups() -> None:
        """Ends the groups of the layout before. Each has threads that poll a hundred times a second, for ever."""
        import torch.distributed as dist
        from megatron.core import parallel_state as mpu

        mpu.destroy_model_parallel()
        for group in list(dist.distributed_c10d._world.pg_map):
            if group is not dist.group.WORLD:
                dist.destroy_process_group(group)
        gc.collect()

    def build(
        self, folder: Path | str, sizes: Mapping[str, Any], dtype: str = "float32"
    ) -> tuple[Any, Any, Any, Any]:
        """Splits the world by Megatron's own argument names and builds the model of a folder, empty.

        Returns the arguments, the transformer configuration, the chunks and their `Bound`.
        """
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        from verst.runtime.trainer.model.arguments import parse
        from verst.runtime.trainer.model.model import build_chunks
        from verst.sync.hf.model_config import read_model
        from verst.sync.layout.binding import bind
        from verst.sync.layout.layout import Layout, ParallelSizes

        self._forget_groups()
        family, config = read_model(folder)
        args, transformer = parse(
            {**_OPTIONS, **sizes}, self.world, family.megatron_args(config), dtype=dtype, train_steps=10
        )
        self.parallel.split(args)
        model_parallel_cuda_manual_seed(args.seed, force_reset_rng=True)
        chunks = build_chunks(args, transformer)
        layout = Layout(family, config, ParallelSizes.from_arguments(args), self.rank)
        return args, transformer, chunks, bind(layout, chunks)


def logits_of(chunk: Any, tokens_BT: Any) -> Any:
    """A whole model's logits [B, T, V] of B sequences, which it takes as one packed row."""
    import torch

    from verst.runtime.trainer.model.packed_sequences import PackedSequences

    rows, length = tokens_BT.shape
    positions = torch.arange(length).repeat(rows)
    packed = PackedSequences([length] * rows, positions)
    found = chunk(tokens_BT.reshape(1, -1), positions[None], None, packed_seq_params=packed)
    return found.reshape(rows, length, -1)
