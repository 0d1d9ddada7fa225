"""Computes log-probabilities and entropies from vocabulary-parallel logits, without an fp32 copy of the
logits.

Logits are computed in the model's dtype, and only at the trained positions (`AtPositions`, the model's output
processor). The reduction over the vocabulary runs in fp32 on one slice of tokens at a time, and divides the slice by
each token's sampling temperature. The backward pass recomputes the softmax slice by slice, in the logits' own memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from verst.runtime.trainer.share.batch import Batch

_SLICE_ELEMENTS = 1 << 25  # fp32 elements of one slice of logits: 128 MiB
_IMPOSSIBLE = -1e4  # stands for the log-probability -inf; its exp is 0, too


@dataclass(frozen=True)
class LogprobHead:
    """The head of a policy: log-probability and entropy at each position of a micro-batch."""

    vocab_size: int  # without padding
    with_entropy_grad: bool

    def __call__(self, batch: Batch) -> AtPositions:
        """The micro-batch's output processor."""
        return AtPositions(
            positions=batch.positions,
            labels=batch.labels,
            vocab_size=self.vocab_size,
            tp_group=mpu.get_tensor_model_parallel_group(),
            with_entropy_grad=self.with_entropy_grad,
            temperature=batch.temperature,
        )


@dataclass(frozen=True)
class AtPositions:
    """The output of the last stage, passed to `GPTModel.forward` as `output_processor`.

    `positions` [n], n >= 1, are indices into the tokens of this rank's share of the micro-batch.
    `labels` [n] are token ids. `vocab_size` does not count padding. Logits are divided by `temperature` [n], fp32;
    None stands for 1.
    """

    positions: Tensor
    labels: Tensor
    vocab_size: int
    tp_group: dist.ProcessGroup
    with_entropy_grad: bool
    temperature: Tensor | None = None

    def __call__(
        self, *, hidden_states: Tensor, output_layer: Any, output_weight: Any, **unused: Any
    ) -> Tensor:
        """Hidden states [s, b, h] ([s/tp, b, h] under sequence parallelism) -> fp32 [2, n]: log-probability
        of each label and entropy of its distribution, in nats."""
        sharded = output_layer.sequence_parallel
        if sharded:
            # Each tensor-parallel rank's gradient of the gathered states is already the whole sum, because
            # the linear layer below all-reduces it. So the backward pass splits it and does not
            # reduce-scatter.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.tp_group
            )
        chosen = hidden_states.flatten(0, 1).index_select(0, self.positions)
        try:
            output_layer.sequence_parallel = False
            output_layer.allreduce_dgrad = self.tp_group.size() > 1
            logits, _ = output_layer(chosen.unsqueeze(1), weight=output_weight)
        finally:
            output_layer.sequence_parallel = sharded
            output_layer.allreduce_dgrad = self.tp_group.size() > 1 and not sharded
        return vocab_parallel_logprobs(
            logits.squeeze(1),
            self.labels,
            self.vocab_size,
            self.tp_group,
            self.with_entropy_grad,
            self.temperature,
        )


def vocab_parallel_logprobs(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup,
    with_entropy_grad: bool = True,
    temperature: Tensor | None = None,
) -> Tensor:
    """Returns fp32 [2, n]: the log softmax of logits / temperature at each label, and the entropy.

    `temperature` is fp32 [n], each above 0; None stands for 1 and costs nothing.

    `logits` [n, v / ranks], of any float dtype, are this rank's part of the padded vocabulary. The backward
    pass overwrites them with their gradient. Columns from `vocab_size` on have no probability.
    """
    return _VocabParallelLogprobs.apply(logits, labels, vocab_size, group, with_entropy_grad, temperature)


class _VocabParallelLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup,
        entropy_grad: bool,
        temperature: Tensor | None,
    ) -> Tensor:
        width = logits.shape[-1]
        first = group.rank() * width
        real = max(0, min(width, vocab_size - first))  # this rank's columns that are not padding
        logz, entropy = _log_partition_and_entropy(logits[:, :real], temperature, group)
        local = labels - first
        inside = (local >= 0) & (local < real)
        local = local.clamp(0, max(real - 1, 0))
        at_label = logits.gather(1, local.unsqueeze(1)).squeeze(1).float()
        at_label = torch.where(inside, at_label, 0)  # a product would be NaN where another column is -inf
        if temperature is not None:
            at_label /= temperature
        if group.size() > 1:
            dist.all_reduce(at_label, group=group)
        ctx.save_for_backward(logits, local, inside, logz, entropy, temperature)
        ctx.real, ctx.entropy_grad = real, entropy_grad
        return torch.stack([at_label - logz, entropy])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """T d logp / d logit_j = [j = label] - p_j;  T d H / d logit_j = -p_j (log p_j + H)."""
        logits, local, inside, logz, entropy, temperature = ctx.saved_tensors
        grad_logp, grad_entropy = grad[0], grad[1]
        if temperature is not None:
            grad_logp, grad_entropy = grad_logp / temperature, grad_entropy / temperature
        for rows in _slices(logits):
            mine = logits[rows, : ctx.real]
            if temperature is None:
                logp = mine - logz[rows, None]  # fp32, as `logz` is
            else:
                logp = (mine / temperature[rows, None]).sub_(logz[rows, None])
            p = logp.exp()
            if ctx.entropy_grad:
                logp.clamp_(min=_IMPOSSIBLE)  # p log p is 0 where p is 0
                factor = (
                    logp.add_(entropy[rows, None]).mul_(grad_entropy[rows, None]).add_(grad_logp[rows, None])
                )
                p.mul_(factor).neg_()
            else:
                p.mul_(-grad_logp[rows, None])
            p.scatter_add_(1, local[rows, None], (grad_logp[rows] * inside[rows])[:, None])
            logits[rows, : ctx.real] = p.to(logits.dtype)
        logits[:, ctx.real :] = 0
        return logits, None, None, None, None, None


def _log_partition_and_entropy(
    logits: Tensor, temperature: Tensor | None, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """Returns log Z and H = log Z - sum_j p_j logit_j of logits / temperature, fp32 [n] each, over all ranks'
    columns."""
    n, real = logits.shape
    top = torch.full((n,), -torch.inf, dtype=torch.float32, device=logits.device)
    if real:
        top = logits.amax(-1).float()
    if group.size() > 1:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    sums = torch.zeros(2, n, dtype=torch.float32, device=logits.device)
    for rows in _slices(logits):
        shifted = logits[rows] - top[rows, None]  # fp32, as `top` is
        if temperature is not None:
            shifted.div_(temperature[rows, None])
        weights = shifted.exp()
        sums[0, rows] = weights.sum(-1)
        # A logit of -inf makes 0 * -inf, which counts as 0. A logit of NaN still shows in the sum above.
        sums[1, rows] = weights.mul_(shifted).nansum(-1)
    if group.size() > 1:
        dist.all_reduce(sums, group=group)
    log_sum = sums[0].log()
    if temperature is not None:
        top = top / temperature
    return top + log_sum, log_sum - sums[1] / sums[0]


def _slices(logits: Tensor) -> list[slice]:
    step = max(1, _SLICE_ELEMENTS // max(1, logits.shape[1]))
    return [slice(i, i + step) for i in range(0, logits.shape[0], step)]
