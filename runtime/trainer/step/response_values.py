"""Maps values at predicted positions back to the response tokens of whole samples."""

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
    """Returns each sample's values, fp32 [R]. Collective over the context-parallel ranks.

    `values` has one tensor [n] for each of `batches`, which hold all `samples` in order.
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
    """Writes the values of one row of the batch, out of values [n], to its response tokens [R]."""
    mine = batch.places[:, 0] == row
    into[batch.places[mine, 1]] = values[mine]


def add_up(parts: list[np.ndarray], parallel: Parallel, *, over_tp: bool = False) -> list[np.ndarray]:
    """Sums arrays over the context-parallel ranks, and with `over_tp` also over the tensor-parallel ranks.

    Each rank has filled in its own part of the arrays and left zeros elsewhere, so the sums are the whole
    arrays. Collective over these ranks.
    """
    from megatron.core import parallel_state as mpu

    groups = [mpu.get_context_parallel_group()] if parallel.cp_size > 1 else []
    groups += [mpu.get_tensor_model_parallel_group()] if over_tp else []
    if not groups or not parts:
        return parts
    whole = torch.from_numpy(np.concatenate(parts)).to(parallel.device)
    for group in groups:
        dist.all_reduce(whole, group=group)
    return np.split(whole.cpu().numpy(), np.cumsum([len(p) for p in parts])[:-1])
