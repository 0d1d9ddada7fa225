"""Measures what routing replay changes, on some micro-batches of a step.

It compares the trainer's policy with the engine's twice: with the engine's experts, as in training, and with
the trainer's own experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.divergences import k3
from verst.runtime.algorithms.losses import LOG_RATIO_BOUND
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch


def probed_batches(
    batches: Sequence[Batch], step: int, interval: int, microbatch_multiple: int
) -> Sequence[Batch]:
    """Returns the micro-batches to probe in this step, other ones each time.

    Only every `interval`-th step has any; with the interval 0 no step has.
    """
    if not interval or step % interval:
        return []
    # As many as an interleaved pipeline takes together.
    groups = len(batches) // microbatch_multiple
    first = step // interval % groups * microbatch_multiple
    return batches[first : first + microbatch_multiple]


class RoutingProbe:
    """Compares log-probabilities of `batches` with and without replay.

    `free` are those with free routing, on the last stage. `see` gets those of the trained pass. Without
    batches it measures nothing.
    """

    def __init__(self, parallel: Parallel, batches: Sequence[Batch], free: Sequence[Tensor]) -> None:
        self._parallel = parallel
        self.batches = batches
        self._measures = bool(batches)
        self._free = {batch.key: found for batch, found in zip(batches, free, strict=bool(free))}
        # Number of trained tokens, and the sums of the k3 estimate without and with replay.
        self._sums = torch.zeros(3, dtype=torch.float64, device=parallel.device)
        # The largest |log ratio| without and with replay.
        self._largest = torch.zeros(2, dtype=torch.float64, device=parallel.device)

    @torch.no_grad()
    def see(self, batch: Batch, logprobs: Tensor) -> None:
        """Adds a micro-batch's log-probabilities [n] under replay."""
        if batch.key not in self._free:
            return
        real, rollout = batch.trained, batch.signals["rollout_logprobs"]
        self._sums[0] += real.sum()
        for i, found in enumerate((self._free[batch.key], logprobs.detach())):
            self._sums[i + 1] += (k3(rollout, found) * real).double().sum()
            largest = ((found - rollout).abs() * real).max().double()
            self._largest[i] = torch.maximum(self._largest[i], largest)

    def reduce(self) -> dict[str, float]:
        """Returns the figures, equal on every rank. Collective over the world, if there are batches."""
        if not self._measures:
            return {}
        sums = self._sums * (self._parallel.tp_rank == 0 and self._parallel.is_last_stage)
        dist.all_reduce(sums)
        dist.all_reduce(self._largest, op=dist.ReduceOp.MAX)
        tokens, free, replayed = sums.tolist()
        ratios = self._largest.clamp(max=LOG_RATIO_BOUND).exp().tolist()
        return {
            "routing_probe_kl_free": free / max(1.0, tokens),
            "routing_probe_kl_replayed": replayed / max(1.0, tokens),
            "routing_probe_ratio_free": ratios[0],
            "routing_probe_ratio_replayed": ratios[1],
        }
