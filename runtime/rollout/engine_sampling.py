"""A seed per request that holds whatever else is in the batch, on every device. Runs inside SGLang.

SGLang 0.5.17 honours `sampling_seed` only under `--enable-deterministic-inference`, which wants CUDA, and
draws with a Triton kernel. Here each token is drawn by inverting the cumulative distribution at one
uniform number, a hash of (seed, position): nothing of the rest of the batch enters it. It also costs
less than Gumbel noise over the vocabulary, and a token of probability zero is never drawn.
"""

from __future__ import annotations

import secrets
from typing import Any

import torch

_UNIFORM_BITS = 48


def apply() -> None:
    """Patches this process."""
    from sglang.srt.layers import sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    original = SamplingBatchInfo.from_schedule_batch.__func__

    def from_schedule_batch(cls: Any, batch: Any, vocab_size: int) -> Any:
        info = original(cls, batch, vocab_size)
        seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
        fresh = [secrets.randbits(62) if seed is None else seed for seed in seeds]
        info.sampling_seed = torch.tensor(fresh, dtype=torch.int64).to(batch.device, non_blocking=True)
        return info

    SamplingBatchInfo.from_schedule_batch = classmethod(from_schedule_batch)

    def sampling_from_probs_torch(
        probs: torch.Tensor, sampling_seed: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        return draw(probs, sampling_seed, positions).view(-1).to(torch.int32)

    def multinomial_with_seed(
        logprobs: torch.Tensor, seed: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        return draw(logprobs.exp(), seed, positions)

    sampler.sampling_from_probs_torch = sampling_from_probs_torch
    sampler.multinomial_with_seed = multinomial_with_seed


def draw(weights_BV: torch.Tensor, seeds_B: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
    """One index [B, 1] for each row of weights that need not sum to one; depends on its own row alone."""
    cumulative_BV = weights_BV.cumsum(-1, dtype=torch.float64)
    target_B1 = uniform(seeds_B, positions_B).unsqueeze(1) * cumulative_BV[:, -1:]
    # right=True: the first index whose cumulative weight exceeds the target, so its own weight is positive.
    return torch.searchsorted(cumulative_BV, target_B1, right=True)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """float64 in the open interval (0, 1), a hash of each (seed, position), both int64."""
    mixed = _mix(_mix(seeds.to(torch.int64)) + positions.to(torch.int64))
    top = (mixed >> (64 - _UNIFORM_BITS)) & ((1 << _UNIFORM_BITS) - 1)
    return (top.to(torch.float64) + 0.5) * 2.0**-_UNIFORM_BITS


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function (Steele, Lea, Flood 2014); int64 wraps as uint64 does."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
