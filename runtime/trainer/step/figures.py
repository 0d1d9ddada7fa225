"""Sums the figures of a step over its micro-batches and over the world."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.hooks.errors import HookError
from verst.runtime.trainer.parallel import Parallel


class Figures:
    """Means and maxima over tokens, by name. Only ranks of the last stage see tokens; all get the result."""

    def __init__(self, parallel: Parallel) -> None:
        self._parallel = parallel
        self._names: list[str] = []
        self._largest_names: list[str] = []
        self._sums: Tensor | None = None  # fp64 [figures, 2]: the sum and the number of tokens
        self._largest: Tensor | None = None  # fp64 [maxima]

    @torch.no_grad()
    def add(self, means: Mapping[str, tuple[Tensor, Tensor]], largest: Mapping[str, Tensor]) -> None:
        """Adds a micro-batch. The names must be the same in each micro-batch of a step.

        means: name -> values [n], and which tokens count, [n].
        largest: name -> values [n], 0 where a token does not count.
        """
        means, largest = dict(sorted(means.items())), dict(sorted(largest.items()))
        if self._sums is None:
            self._names, self._largest_names = list(means), list(largest)
        elif [*means, *largest] != [*self._names, *self._largest_names]:
            differing = sorted({*means, *largest} ^ {*self._names, *self._largest_names})
            raise HookError(f"figures must be the same in each micro-batch; these differ: {differing}")
        counted = torch.stack([count.float() for _, count in means.values()])
        # Where a token does not count its value may be anything, NaN too.
        values = torch.where(counted > 0, torch.stack([value.detach() for value, _ in means.values()]), 0)
        sums = torch.stack([values.double().sum(1), counted.double().sum(1)], 1)
        most = sums.new_tensor([])
        if largest:
            most = torch.stack([value.detach().max().double() for value in largest.values()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._largest = most if self._largest is None else torch.maximum(self._largest, most)

    def reduce(self) -> tuple[dict[str, float], dict[str, float]]:
        """The means and maxima, and the number of tokens of each mean; equal on every rank.

        A mean over no token is left out. Collective over the world. Raises HookError, on every rank, if ranks of the
        last stage have other names: then a loss reports figures that depend on the data.
        """
        self._same_on_all_ranks()
        # The last rank is of the last stage, and knows the names.
        names = [self._names, self._largest_names]
        dist.broadcast_object_list(names, self._parallel.world_size - 1, device=self._parallel.device)
        shape = len(names[0]), 2
        sums, largest = self._sums, self._largest
        if sums is None or largest is None:
            sums = torch.zeros(shape, dtype=torch.float64, device=self._parallel.device)
            largest = torch.zeros(len(names[1]), dtype=torch.float64, device=self._parallel.device)
        # Tensor-parallel ranks hold the same tokens, and stages before the last hold none.
        sums = sums * (self._parallel.tp_rank == 0 and self._parallel.is_last_stage)
        dist.all_reduce(sums)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        found = dict(zip(names[0], sums.tolist(), strict=True))
        means = {name: total / count for name, (total, count) in found.items() if count}
        return means | dict(zip(names[1], largest.tolist(), strict=True)), {
            name: count for name, (_, count) in found.items()
        }

    def _same_on_all_ranks(self) -> None:
        digest = zlib.crc32(repr((self._names, self._largest_names)).encode())
        # The largest and the smallest; ranks without names take no part in either.
        ends = [digest, -digest] if self._sums is not None else [-1, -(1 << 32)]
        found = torch.tensor(ends, dtype=torch.int64, device=self._parallel.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        if found[0] != -found[1]:
            raise HookError(
                "the loss function reports other metrics on some trainer ranks than on others: return the same names "
                f"in every micro-batch, whatever the data; on this rank they are {self._names}"
            )
