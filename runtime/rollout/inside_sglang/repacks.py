"""Detects which parameters of a quantised engine SGLang has changed after loading them. Runs inside SGLang.

Kernels may need weights in their own layouts. So after loading, a layer's quantisation method may repack its weights
(Marlin's INT4), replace scales, or keep further tensors that it derives from them. Blocks are cut in the way that the
loader cuts tensors, so they can be written into parameters only if nothing like this has happened. Whether it happens
depends on the format, the GPU and SGLang's arguments. So each layer is compared before and after, while SGLang loads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from verst.sync.layout.load_trace import TraceError

_SHOWN = 5


def apply() -> None:
    """Patches this process."""
    from sglang.srt.model_loader import loader

    original = loader.device_loading_context

    @contextlib.contextmanager
    def device_loading_context(module: Any, target_device: torch.device) -> Iterator[Any]:
        with original(module, target_device):
            quantised = "Unquantized" not in type(getattr(module, "quant_method", None)).__name__
            with watched(module) if quantised else contextlib.nullcontext():
                yield module

    loader.device_loading_context = device_loading_context


@contextlib.contextmanager
def watched(module: torch.nn.Module) -> Iterator[None]:
    """Compares a module's tensors at the beginning and the end of the context.

    Stores the names of changed, removed and new tensors in the module's `verst_repacked`.
    """
    before = {name: tensor.detach().clone() for name, tensor in _tensors(module).items()}
    yield
    after = _tensors(module)
    repacked = sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or not _same(before[name], after[name])
    )
    module.verst_repacked = repacked  # type: ignore[assignment]


def require_as_loaded(model: torch.nn.Module) -> None:
    """Raises TraceError if SGLang has changed any tensor after loading, and names the first few."""
    names = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in getattr(module, "verst_repacked", ())
    ]
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise TraceError(
            f"SGLang has repacked {', '.join(names[:_SHOWN])}{more} for its kernels after loading"
        )


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The module's own parameters, buffers and other tensors by name."""
    others = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return dict(own) | others


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
