"""The head of a critic and of a reward model, in the place of a model's output layer.

It starts at zero, so all values and scores are 0 at first: a critic's first advantages are plain returns, and a reward
model prefers no answer.
"""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class ScalarHead(torch.nn.Module):
    """Holds the weight, [1, hidden]. `step/values.py` multiplies by it, in fp32."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        # Of the hidden states that it gets. Its own gradient is whole on every tensor-parallel rank.
        self.sequence_parallel = config.sequence_parallel
        self.weight = torch.nn.Parameter(
            torch.zeros(1, config.hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
