"""Loads a weight version from a folder, or from this node's copy of it. Runs inside SGLang, in each of its ranks.

Every rank reads the whole version through the model's own loader, which takes its slices. Out of the folder each
tensor is verified as it is read; a copy was verified when it was made, and a rank reads of it what it uses.
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
    """Loads it on all of the engine's ranks. Raises TransferError with the reasons: it is then of no version."""
    runner = manager.tp_worker.model_runner
    deadline = time.monotonic() + order.timeout_s

    def load() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what still computes reads the parameters
        try:
            with open_version(Path(order.root), order.version, order.timeout_s) as reader:
                _load(runner, _until(deadline, order, _tensors(reader, order.copy)))
        except (
            OSError,
            LookupError,
            AssertionError,
        ) as error:  # files, and what loaders raise for a strange name
            raise TransferError(f"{type(error).__name__}: {error}") from error

    together(load, manager.tp_cpu_group, type(None))


def _tensors(reader: VersionReader, copy: str | None) -> Iterator[Named]:
    if copy is not None:
        return tensors_in(copy, reader.index)
    return ((name, reader.tensor(name)) for name in reader.index.tensors)


def _until(deadline: float, order: LoadOrder, tensors: Iterator[Named]) -> Iterator[Named]:
    for tensor in tensors:
        if time.monotonic() > deadline:
            raise TransferError(f"version {order.version} was not loaded in {order.timeout_s:.0f} s")
        yield tensor


def _load(runner: Any, tensors: Iterator[Named]) -> None:
    if runner.model_config.quantization is None:
        runner.model.load_weights(tensors)
        return
    # What SGLang does when it loads a quantised folder: its kernels' layouts are made from what was loaded.
    from sglang.srt.model_loader.loader import DefaultModelLoader
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    with set_default_torch_dtype(runner.model_config.dtype):
        DefaultModelLoader.load_weights_and_postprocess(runner.model, tensors, torch.device(runner.device))
