"""Makes up the trained tokens of a micro-batch, to call a recipe's loss on. Imports torch."""

from __future__ import annotations

import torch

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.tokens import Sequences, TokenBatch

_ROWS = (0, 0, 0, 1, 1)


def made_up_tokens(config: AlgorithmConfig) -> TokenBatch:
    """Five tokens of two answers, for a recipe with this `algorithm` section."""
    logprobs = torch.tensor([-0.5, -2.0, -0.1, -1.0, -3.0])
    near = logprobs + torch.tensor([0.1, -0.2, 0.0, 0.3, -0.1])
    return TokenBatch(
        logprobs=logprobs.clone().requires_grad_(),
        entropy=torch.tensor([1.0, 0.5, 0.1, 0.9, 1.5]).requires_grad_(),
        advantages=torch.tensor([1.0, 1.0, 1.0, -0.5, -0.5]),
        versions=torch.zeros(5, dtype=torch.int64),
        signals={
            "old_logprobs": near,
            "rollout_logprobs": near,
            "reference_logprobs": logprobs - 0.1,
            "teacher_logprobs": logprobs + 0.1,
            "temperature": torch.ones(5),
            **({} if config.critic is None else {"values": logprobs, "returns": near}),
        },
        sequences=Sequences(torch.tensor(_ROWS), 2),
        config=config,
    )
