"""Loads a weight version from a folder or from this node's copy of it. Runs inside SGLang, in each of its ranks.

Every rank passes all tensors through the model's own loader, which takes its slices. Tensors from the folder are
verified as they are read. A copy was verified when it was made, and a rank reads only the parts that it uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from verst.runtime.rollout.inside_sglang.blocks import together as together
from verst.runtime.rollout.inside_sglang.orders import LoadOrder
from verst.sync.versions.local_copy import tensors_in
from verst.sync.versions.reader import VersionReader, open_version
from verst.sync.wire.wire import TransferError

Named = tuple[str, torch.Tensor]


def load_version(manager: Any, order: LoadOrder) -> None:
    """Loads the version on all of the engine's ranks.

    Raises TransferError with the reasons; the engine's parameters then belong to no version.
    """
    runner = manager.tp_worker.model_runner
    deadline = time.monotonic() + order.timeout_s

    def load() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # running kernels still read the parameters
        try:
            with open_version(Path(order.root), order.version, order.timeout_s) as reader:
                _load(runner, _until(deadline, order, _tensors(reader, order.copy)))
        except (
            OSError,
            LookupError,
            AssertionError,
        ) as error:  # errors of files, and those that loaders raise for an unknown name
            raise TransferError(f"{type(error).__name__}: {error}") from error

    together(load, manager.tp_cpu_group, type(None))


def _tensors(reader: VersionReader, copy: str | None) -> Iterator[Named]:
    if copy is not None:
        return tensors_in(copy, reader.index)
    return ((name, reader.tensor(name)) for name in reader.index.tensors)


def _until(deadline: float, order: LoadOrder, tensors: Iterator[Named]) -> Iterator[Named]:
    for tensor in tensors:
        if time.monotonic() > deadline:
            raise TransferError(f"version {order.version} was not loaded within {order.timeout_s:.0f} s")
        yield tensor


def _load(runner: Any, tensors: Iterator[Named]) -> None:
    if runner.model_config.quantization is None:
        runner.model.load_weights(tensors)
        return
    # As SGLang loads a quantised folder: the layouts for its kernels are made from the loaded tensors.
    from sglang.srt.model_loader.loader import DefaultModelLoader
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    with set_default_torch_dtype(runner.model_config.dtype):
        DefaultModelLoader.load_weights_and_postprocess(runner.model, tensors, torch.device(runner.device))
