"""Sampling with a seed per request, on every device and whatever else is in the batch. Runs inside SGLang.

SGLang 0.5.17 honours `sampling_seed` only with `--enable-deterministic-inference`, which needs CUDA, and draws with a
Triton kernel. Here each token is drawn by inverting the cumulative distribution at one uniform number, a hash of (seed,
position), so the rest of the batch has no influence. This also costs less than Gumbel noise over the vocabulary, and a
token of probability zero is never drawn.
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

    sampler.sampling_from_probs_torch = sampling_from_probs_torch
    sampler.top_k_top_p_min_p_sampling_from_probs_torch = sample_restricted


def sample_restricted(
    probs_BV: torch.Tensor,
    top_ks_B: torch.Tensor,
    top_ps_B: torch.Tensor,
    min_ps_B: torch.Tensor,
    need_min_p_sampling: bool,
    sampling_seed_B: torch.Tensor,
    positions_B: torch.Tensor,
) -> torch.Tensor:
    """Samples with SGLang's top-k, top-p and min-p: int32 [B]. Rows without a restriction get the token of `draw`.

    A single restricted request brings the whole batch here. So the weights are kept in the order of the vocabulary, as
    in the path without restrictions.
    """
    sorted_BV, indices_BV = probs_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    ranks_V = torch.arange(probs_BV.shape[-1], device=probs_BV.device)
    out_BV = ranks_V >= top_ks_B.view(-1, 1)
    out_BV |= (top_ps_B < 1).view(-1, 1) & (before_BV > top_ps_B.view(-1, 1))
    if need_min_p_sampling:
        out_BV |= sorted_BV < sorted_BV[:, :1] * min_ps_B.view(-1, 1)
    kept_BV = torch.zeros_like(probs_BV).scatter_(-1, indices_BV, sorted_BV.masked_fill(out_BV, 0))
    return draw(kept_BV, sampling_seed_B, positions_B).view(-1).to(torch.int32)


def draw(weights_BV: torch.Tensor, seeds_B: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
    """Draws one index [B, 1] for each row of weights, which need not sum to one. Depends on that row only."""
    cumulative_BV = weights_BV.cumsum(-1, dtype=torch.float64)
    target_B1 = uniform(seeds_B, positions_B).unsqueeze(1) * cumulative_BV[:, -1:]
    # right=True finds the first index whose cumulative weight exceeds the target, so its own weight is positive.
    return torch.searchsorted(cumulative_BV, target_B1, right=True)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A hash of each (seed, position), both int64, as float64 in the open interval (0, 1)."""
    mixed = _mix(_mix(seeds.to(torch.int64)) + positions.to(torch.int64))
    top = (mixed >> (64 - _UNIFORM_BITS)) & ((1 << _UNIFORM_BITS) - 1)
    return (top.to(torch.float64) + 0.5) * 2.0**-_UNIFORM_BITS


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function (Steele, Lea, Flood 2014). int64 wraps like uint64."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
