"""Lets SGLang 0.5.17 run on a CPU. It needs CUDA in some places even with `--device cpu`, and in others AMX."""

from __future__ import annotations

import os
from multiprocessing import context, popen_fork, popen_spawn_posix
from pathlib import Path
from typing import Any

import torch


def apply() -> None:
    """Patches this process."""
    _unpinned_host_cache()
    _no_pynccl()
    _latent_attention_from_the_cache()
    _data_parallel_attention()
    _experts_of_other_ranks()
    _start_by_forking()


def _unpinned_host_cache() -> None:
    """Allocates the host buffer for routed experts unpinned, because pinned memory needs a CUDA driver."""
    from sglang.srt.state_capturer import base

    def init(self: Any, num_tokens: int, num_layers: int, topk_size: int, name: str) -> None:
        self.buffer = torch.zeros((num_tokens, num_layers, topk_size), dtype=torch.int32)
        self.num_tokens, self.num_layers, self.topk_size, self.name = num_tokens, num_layers, topk_size, name
        self._log_allocation()

    base.BaseHostCache.__init__ = init


def _no_pynccl() -> None:
    """Keeps tensor-parallel groups from using PyNccl, which they request on every device. CPUs use gloo."""
    from sglang.srt.distributed import parallel_state

    original = parallel_state.init_model_parallel_group

    def init_model_parallel_group(*args: Any, **kwargs: Any) -> Any:
        kwargs["use_pynccl"] = False
        return original(*args, **kwargs)

    parallel_state.init_model_parallel_group = init_model_parallel_group


def _latent_attention_from_the_cache() -> None:
    """Makes the prefill of latent attention attend to the cached latents.

    By default it computes keys and values for attention kernels that take them. torch's native backend reads the cache
    instead, which holds the latents.
    """
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers

    handlers.AttentionBackendRegistry.register(
        "torch_native", lambda attention, batch: handlers.AttnForwardMethod.MLA
    )


def _data_parallel_attention() -> None:
    """Replaces the parts of data-parallel attention that a CPU lacks.

    These are pinned token counts, which need a CUDA driver; a fill value that torch's native backend does not have;
    collectives that exist only for CUDA or PyNccl; and a Triton kernel that copies a rank's tokens into and out of the
    tokens of all ranks.
    """
    from sglang.srt.distributed.parallel_state import GroupCoordinator
    from sglang.srt.layers import dp_attention
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    make = torch.tensor

    def tensor(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return make(*args, **kwargs)

    def copy(
        into: torch.Tensor, of: torch.Tensor, dim: int, offset: Any, count: Any, offset_in_source: bool
    ) -> None:
        begin, rows = int(offset), int(count)
        if offset_in_source:
            into[:rows] = of[begin : begin + rows]
        else:
            into[begin : begin + rows] = of[:rows]

    def reduce_scatterv(
        self: Any, input_: torch.Tensor, output: torch.Tensor | None = None, sizes: list[int] | None = None
    ) -> torch.Tensor:
        summed = input_.clone()
        torch.distributed.all_reduce(summed, group=self.device_group)
        parts = summed.split(sizes) if sizes else summed.chunk(self.world_size)
        return parts[self.rank_in_group] if output is None else output.copy_(parts[self.rank_in_group])

    torch.tensor = tensor
    TorchNativeAttnBackend.get_cuda_graph_seq_len_fill_value = lambda self: 1
    GroupCoordinator.all_gather_into_tensor = GroupCoordinator._all_gather_into_tensor
    GroupCoordinator.reduce_scatter_tensor = GroupCoordinator._reduce_scatter_tensor
    GroupCoordinator.reduce_scatterv = reduce_scatterv
    dp_attention.memcpy_triton = copy


def _experts_of_other_ranks() -> None:
    """Lets the native experts work under expert parallelism.

    A token's experts that are on other ranks have the number -1, which the native experts use as an index. Here they
    are replaced by the first expert with weight zero. The native experts also need a token's experts to differ, so each
    token is passed once for each of its experts.
    """
    from sglang.srt.layers.moe import fused_moe_native

    original = fused_moe_native.moe_forward_native

    def moe_forward_native(layer: Any, x: torch.Tensor, topk_output: Any, *args: Any) -> torch.Tensor:
        ids_TK, weights_TK = topk_output.topk_ids, topk_output.topk_weights
        elsewhere_TK = ids_TK < 0
        if not elsewhere_TK.any():
            return original(layer, x, topk_output, *args)
        single = topk_output._replace(
            topk_ids=ids_TK.masked_fill(elsewhere_TK, 0).view(-1, 1),
            topk_weights=weights_TK.masked_fill(elsewhere_TK, 0).view(-1, 1),
        )
        out = original(layer, x.repeat_interleave(ids_TK.shape[1], 0), single, *args)
        return out.view(*ids_TK.shape, -1).sum(1)

    fused_moe_native.moe_forward_native = moe_forward_native


def _start_by_forking() -> None:
    """Starts SGLang's processes as forks of the first one, which has imported all that they need.

    SGLang spawns them, for CUDA's sake, and each imports SGLang anew: over 20 s of CPU time. A process with threads
    must not be forked, because a lock that another thread holds is never released in the fork. So one that has any
    spawns as before. pyarrow's allocator, jemalloc, has a thread that is prepared for forks.
    """

    def start(process: Any) -> popen_fork.Popen:
        threads = [Path("/proc/self/task", task, "comm") for task in os.listdir("/proc/self/task")]
        others = [thread for thread in threads if thread.read_text().strip() != "jemalloc_bg_thd"]
        return popen_fork.Popen(process) if len(others) == 1 else popen_spawn_posix.Popen(process)

    context.SpawnProcess._Popen = staticmethod(start)  # type: ignore[method-assign, assignment]
