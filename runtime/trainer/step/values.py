"""The heads of critics and reward models: a number at each position of a micro-batch.

A critic's value of a token is that of the state before it, and is computed from the same hidden state as the token's
log-probability. A reward model's score of a sample is computed from the hidden state of its last token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from verst.runtime.trainer.share.batch import Batch


def scalar_head(batch: Batch) -> AtPositions:
    """The output processor of a micro-batch."""
    return AtPositions(batch.positions, mpu.get_tensor_model_parallel_group())


@dataclass(frozen=True)
class AtPositions:
    """The output of the last stage, passed to `GPTModel.forward` as `output_processor`.

    `positions` [n], n >= 1, are indices into the tokens of this rank's share of the micro-batch.
    """

    positions: Tensor
    tp_group: dist.ProcessGroup

    def __call__(self, *, hidden_states: Tensor, output_layer: Any, **unused: Any) -> Tensor:
        """Hidden states [s, b, h] ([s/tp, b, h] under sequence parallelism) -> fp32 [1, n]: the numbers."""
        if output_layer.sequence_parallel:
            # Each tensor-parallel rank computes all values, so its gradient of the gathered states is whole.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.tp_group
            )
        chosen = hidden_states.flatten(0, 1).index_select(0, self.positions)
        return (chosen.float() @ output_layer.weight[0].float())[None]
