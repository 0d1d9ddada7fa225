"""Makes the tokens of a micro-batch for tests of losses, corrections and terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.tokens import Sequences, TokenBatch


def config(**options: Any) -> AlgorithmConfig:
    """An `algorithm` section."""
    return AlgorithmConfig(**{"steps": 20, "prompts_per_step": 1, "samples_per_prompt": 2, **options})


def token_batch(
    logprobs: Sequence[float] | torch.Tensor,
    *,
    advantages: Sequence[float],
    old_logprobs: Sequence[float],
    rollout_logprobs: Sequence[float] | None = None,
    reference_logprobs: Sequence[float] | None = None,
    rows: Sequence[int] | None = None,
    config: AlgorithmConfig,
    dtype: torch.dtype = torch.float32,
) -> TokenBatch:
    """Tokens of a micro-batch; by default all of one sample. `logprobs` gets gradients if it is a list."""

    def tensor(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    if not isinstance(logprobs, torch.Tensor):
        logprobs = tensor(logprobs).requires_grad_()
    signals = {
        "old_logprobs": tensor(old_logprobs),
        "rollout_logprobs": tensor(old_logprobs if rollout_logprobs is None else rollout_logprobs),
    }
    if reference_logprobs is not None:
        signals["reference_logprobs"] = tensor(reference_logprobs)
    places = torch.tensor([0] * len(logprobs) if rows is None else rows)
    return TokenBatch(
        logprobs=logprobs,
        entropy=torch.zeros(len(logprobs), dtype=dtype),
        advantages=tensor(advantages),
        versions=torch.zeros(len(logprobs), dtype=torch.int64),
        signals=signals,
        sequences=Sequences(places, int(places.max()) + 1),
        config=config,
    )
