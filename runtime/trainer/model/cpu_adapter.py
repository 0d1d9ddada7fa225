"""Lets megatron-core run on the CPU with gloo. Does nothing where CUDA is available.

Megatron-Core asks `torch.cuda` for devices, streams and random states without checking for a GPU. `apply()`
makes `torch.cuda` answer for the CPU, once, before megatron is imported. No other file knows which device it
runs on. Each function below is one shim and names the part of Megatron (0.19.2) that needs it.

Device names are rewritten by a `TorchFunctionMode`, which is thread-local. Therefore the trainer calls
Megatron from the thread that called `apply()`. Autograd runs the backward pass of CPU tensors in that thread
too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_cuda_api: Any = torch.cuda  # typed Any, so that its attributes can be assigned
_torch_api: Any = torch
_mode: _CudaMeansCpu | None = None


def apply() -> None:
    """Installs the shims. Call it before the first import of megatron. A second call does nothing."""
    global _mode
    if torch.cuda.is_available() or _mode is not None:
        return
    _answer_device_questions()
    _keep_jit_off()  # this is the first to import megatron
    _answer_with_cpu_random_state()
    _replace_streams()
    _mode = _CudaMeansCpu()
    _mode.__enter__()
    _split_sizes_as_lists()


def _answer_device_questions() -> None:
    """`current_device()` is the device of new buffers (DDP's, the router's, p2p's). The other calls do
    nothing.

    Megatron's argument checks ask for the compute capability, to refuse features of newer GPUs.
    """
    _cuda_api.current_device = lambda: _CPU
    _cuda_api.synchronize = lambda device=None: None  # p2p_communication, after batched sends
    _cuda_api.set_device = lambda device: None
    _cuda_api.empty_cache = lambda: None
    _cuda_api.get_device_capability = lambda device=None: (8, 0)
    _cuda_api.get_device_properties = lambda device=None: _Properties()


class _Properties:
    """The properties that `megatron.core.utils.get_device_arch_version` reads."""

    major, minor, multi_processor_count, total_memory = 8, 0, 1, 0


def _answer_with_cpu_random_state() -> None:
    """Lets the random-state tracker, which forks even at dropout 0, save and restore the CPU generator's
    state."""
    from torch import random

    _cuda_api.get_rng_state = lambda device="cuda": random.get_rng_state()
    _cuda_api.set_rng_state = lambda state, device="cuda": random.set_rng_state(state)
    _cuda_api.manual_seed = lambda seed: random.default_generator.manual_seed(seed)
    _cuda_api.manual_seed_all = torch.cuda.manual_seed

    import megatron.core.tensor_parallel.random as tracker

    tracker._get_cuda_rng_state = lambda *args, **kwargs: random.get_rng_state()
    tracker._set_cuda_rng_state = lambda state, *args, **kwargs: random.set_rng_state(state)


class _Stream:
    """Streams and events that never wait, because a CPU runs everything in order.

    They are classes because torch uses them in annotations.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *exc: object) -> None: ...


class _Event(_Stream):
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def elapsed_time(self, end: Any) -> float:
        return 0.0


def _replace_streams() -> None:
    """DDP's gradient reduction and the mixture-of-experts dispatcher order work by streams and events."""
    _cuda_api.Stream = _Stream
    _cuda_api.Event = _Event
    _cuda_api.stream = lambda stream: _Stream()
    _cuda_api.current_stream = lambda device=None: _Stream()
    _cuda_api.default_stream = lambda device=None: _Stream()


def _keep_jit_off() -> None:
    """Keeps `jit_fuser` off: it is torch.compile, applied while megatron is imported.

    On a CPU it would compile C++ for minutes, per rank and shape.
    """
    compiled = torch.compile
    _torch_api.compile = lambda function=None, **options: function or (lambda function: function)
    try:
        import megatron.core.jit as jit
    finally:
        _torch_api.compile = compiled
    jit.disable_jit_fuser()  # for modules that are imported later


def _split_sizes_as_lists() -> None:
    """All-to-all takes split sizes as lists, and Megatron converts only CUDA tensors to lists."""
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    def maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if torch.is_tensor(tensor) and as_numpy:
            return tensor.cpu().numpy()
        return tensor

    moe_utils.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu


class _CudaMeansCpu(TorchFunctionMode):
    """Lets `device="cuda"`, `.cuda()`, `.to("cuda")`, `pin_memory` and `Tensor.type()` work on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs:
            device = kwargs.get("device")
            if device is not None and _is_cuda(device):
                kwargs = {**kwargs, "device": _CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        handler = _REWRITTEN.get(func)
        if handler is not None:
            return handler(func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)


def _is_cuda(device: Any) -> bool:
    if isinstance(device, bool):
        return False
    if isinstance(device, int):
        return True
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _cuda(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


def _pin_memory(func: Any, args: Any, kwargs: Any) -> Any:
    return args[0]


def _to(func: Any, args: Any, kwargs: Any) -> Any:
    args = tuple(_CPU if not isinstance(a, int) and _is_cuda(a) else a for a in args)
    return func(*args, **kwargs)


def _type(func: Any, args: Any, kwargs: Any) -> Any:
    """Gradient clipping and the optimizers recognise parameters by the type `'torch.cuda.FloatTensor'`."""
    result = func(*args, **kwargs)
    return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result


def _product_in_fp32(func: Any, args: Any, kwargs: Any) -> Any:
    """Computes bf16 products in fp32 and rounds once at the end, as a bf16 kernel with fp32 sums does.

    Without AMX, bf16 kernels are slower than fp32 ones: on a Xeon core with avx512_bf16 alone, matrix
    products ran at 75 Gflop/s in bf16 and at 125 in fp32. Attention's backward pass on 21 sequences of 48
    tokens took 41 ms in bf16 and 10 ms in fp32.
    """
    if args[0].dtype != torch.bfloat16:
        return func(*args, **kwargs)
    wide = (a.float() if isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 else a for a in args)
    return func(*wide, **kwargs).to(torch.bfloat16)


_REWRITTEN = {
    torch.Tensor.cuda: _cuda,
    torch.Tensor.pin_memory: _pin_memory,
    torch.Tensor.to: _to,
    torch.Tensor.type: _type,
}
if not torch.cpu._is_amx_tile_supported():
    _REWRITTEN |= dict.fromkeys(
        (torch.matmul, torch.Tensor.matmul, torch.nn.functional.scaled_dot_product_attention),
        _product_in_fp32,
    )
