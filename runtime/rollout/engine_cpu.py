"""The places where SGLang 0.5.17 asks for CUDA even with `--device cpu`, or has nothing for a CPU without AMX."""

from __future__ import annotations

from typing import Any

import torch


def apply() -> None:
    """Patches this process."""
    _unpinned_host_cache()
    _copied_captures()
    _no_pynccl()
    _latent_attention_from_the_cache()


def _unpinned_host_cache() -> None:
    """The routed experts' host buffer is allocated pinned, which needs a CUDA driver."""
    from sglang.srt.state_capturer import base

    def init(self: Any, num_tokens: int, num_layers: int, topk_size: int, name: str) -> None:
        self.buffer = torch.zeros((num_tokens, num_layers, topk_size), dtype=torch.int32)
        self.num_tokens, self.num_layers, self.topk_size, self.name = num_tokens, num_layers, topk_size, name
        self._log_allocation()

    base.BaseHostCache.__init__ = init


def _copied_captures() -> None:
    """With overlapping batches a batch's experts are copied to the host before the next one overwrites them; on a CPU
    that copy is the same memory."""
    from sglang.srt.state_capturer.base import TopkCaptureOutput

    original = TopkCaptureOutput.map_device_tensors

    def map_device_tensors(self: Any, fn: Any) -> None:
        original(self, fn)
        self.topk, self.out_cache_loc = self.topk.clone(), self.out_cache_loc.clone()

    TopkCaptureOutput.map_device_tensors = map_device_tensors


def _no_pynccl() -> None:
    """Tensor-parallel groups ask for PyNccl whatever the device; gloo does the work on CPUs."""
    from sglang.srt.distributed import parallel_state

    original = parallel_state.init_model_parallel_group

    def init_model_parallel_group(*args: Any, **kwargs: Any) -> Any:
        kwargs["use_pynccl"] = False
        return original(*args, **kwargs)

    parallel_state.init_model_parallel_group = init_model_parallel_group


def _latent_attention_from_the_cache() -> None:
    """Latent attention's prefill computes keys and values of its own for attention kernels that take them; torch's
    native backend reads the cache, which holds the latents, so it must get the form that attends to those."""
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers

    handlers.AttentionBackendRegistry.register(
        "torch_native", lambda attention, batch: handlers.AttnForwardMethod.MLA
    )
