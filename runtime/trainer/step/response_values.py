"""Values of predicted positions, put back at the response tokens of whole samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.messages.sample import Sample
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch


def of_samples(
    samples: Sequence[Sample], batches: Sequence[Batch], values: Sequence[Tensor], parallel: Parallel
) -> list[np.ndarray]:
    """Each sample's values, fp32 [R], from those of the micro-batches that hold the samples in their order.

    Collective over the context-parallel ranks.
    """
    results = [np.zeros(len(s.response_ids), np.float32) for s in samples]
    first = 0
    for batch, values_n in zip(batches, values, strict=True):
        on_host = values_n.cpu().numpy()
        for row in range(len(batch.names)):
            fill(results[first + row], batch, row, on_host)
        first += len(batch.names)
    return add_up(results, parallel)


def fill(into: np.ndarray, batch: Batch, row: int, values: np.ndarray) -> None:
    """Puts one sample's part of values [n] at the response tokens [R] that they are about."""
    mine = batch.places[:, 0] == row
    into[batch.places[mine, 1]] = values[mine]


def add_up(parts: list[np.ndarray], parallel: Parallel, *, over_tp: bool = False) -> list[np.ndarray]:
    """Puts together what each context-parallel rank filled in of arrays that are zero elsewhere, and `over_tp` what
    each tensor-parallel rank did."""
    from megatron.core import parallel_state as mpu

    groups = [mpu.get_context_parallel_group()] if parallel.cp_size > 1 else []
    groups += [mpu.get_tensor_model_parallel_group()] if over_tp else []
    if not groups or not parts:
        return parts
    whole = torch.from_numpy(np.concatenate(parts)).to(parallel.device)
    for group in groups:
        dist.all_reduce(whole, group=group)
    return np.split(whole.cpu().numpy(), np.cumsum([len(p) for p in parts])[:-1])
