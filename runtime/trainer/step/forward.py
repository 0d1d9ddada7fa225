"""Runs micro-batches through the pipeline: forward alone, or forward and backward.

A gradient is the plain sum of weighted token losses' gradients over all micro-batches and ranks. The plan's
weights sum to one over the step, so nothing needs averaging. With `calculate_per_token_loss` Megatron sums
too, and divides by a token count at the end. `sum_gradients` omits that division.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.model.balanced_router import balances
from verst.runtime.trainer.model.packed_sequences import PackedSequences
from verst.runtime.trainer.model.sparse_attention import forget_choices
from verst.runtime.trainer.replay.routing import RoutingReplay
from verst.runtime.trainer.share.batch import Batch
from verst.sync.layout.binding import bare

# What a head makes of a micro-batch, one tensor [n] for each of its rows -> the micro-batch's loss, a scalar.
LossFunction = Callable[..., Tensor]
# What the last stage makes of a micro-batch's hidden states: `GPTModel.forward`'s output processor, which returns
# fp32 [rows, n].
Head = Callable[[Batch], Callable[..., Tensor]]


class Pipeline:
    """Runs micro-batches through this rank's model chunks, by Megatron's pipeline schedule."""

    def __init__(
        self,
        args: argparse.Namespace,
        config: TransformerConfig,
        chunks: Sequence[torch.nn.Module],
        replay: RoutingReplay | None,
        head: Head,
        *,
        trains: bool = True,
    ) -> None:
        """Without `trains` there are no gradients, and the chunks need no DDP around them."""
        self.chunks = list(chunks)
        self._replay = replay
        self._head = head
        self._balances = balances(config)
        self._schedule = get_forward_backward_func()
        if trains:
            wire_gradients(args, config, self.chunks)
        self._config = config

    @torch.no_grad()
    def predict(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Returns the first row of each micro-batch's output, fp32 [n]; an empty list before the last stage.

        For a policy these are log-probabilities.
        """
        return [output[0] for output in self.outputs(batches)]

    @torch.no_grad()
    def outputs(self, batches: Sequence[Batch]) -> list[Tensor]:
        """Returns each micro-batch's output, fp32 [rows, n]; an empty list before the last stage.

        A policy has two rows: log-probabilities and entropies.
        """
        outputs: list[Tensor] = self._run(batches, lambda batch, output: (output.sum() * 0, output), True)
        return outputs

    def train(self, batches: Sequence[Batch], loss: LossFunction) -> None:
        """Adds the micro-batches' gradients to the gradient buffers and reduces them over the world."""
        self._run(batches, _weighted(loss), False)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch], loss: LossFunction) -> None:
        """Computes the micro-batches' losses, and no gradients."""
        self._run(batches, _weighted(loss), True)

    def _run(
        self,
        batches: Sequence[Batch],
        loss: Callable[[Batch, Tensor], tuple[Tensor, Tensor]],
        forward_only: bool,
    ) -> list[Any]:
        if self._balances and not forward_only:
            scale = 1.0 / self._real_tokens(batches)
            # Routers multiply a micro-batch's balancing loss by its real tokens. Here they are divided by all of
            # the step's, so that the loss is the mean over its tokens.
            self._config.moe_grad_scale_func = lambda: torch.tensor(scale)

        def forward_step(data: Iterator[Batch], chunk: torch.nn.Module) -> tuple[Tensor, Any]:
            batch = next(data)
            if self._replay is not None:
                self._replay.load(chunk, batch)
            output = chunk(
                batch.tokens,
                batch.position_ids,
                None,
                packed_seq_params=PackedSequences(batch.padded_lengths, batch.position_ids[0]),
                output_processor=self._head(batch),
                padding_mask=self._padding(chunk, batch) if self._balances and not forward_only else None,
            )

            def loss_func(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                total, report = loss(batch, output)
                return total, torch.ones((), dtype=torch.int, device=total.device), report

            return output, loss_func

        if self._replay is not None:
            self._replay.start(batches)
        data = [iter(batches) for _ in self.chunks]
        outputs = self._schedule(
            forward_step_func=forward_step,
            data_iterator=data if len(self.chunks) > 1 else data[0],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=len(batches),
            seq_length=max(batch.tokens.shape[1] for batch in batches)
            * mpu.get_context_parallel_world_size(),
            micro_batch_size=1,  # stages send each other the shapes
            forward_only=forward_only,
        )
        if self._replay is not None:
            self._replay.finish()
        forget_choices(self.chunks)
        return outputs

    def _real_tokens(self, batches: Sequence[Batch]) -> float:
        """The number of the step's tokens without padding. Collective over the data-parallel ranks."""
        # Context-parallel ranks hold the same samples.
        mine = sum(batch.real_tokens for batch in batches) / mpu.get_context_parallel_world_size()
        total = torch.tensor(mine, dtype=torch.float64, device=batches[0].tokens.device)
        dist.all_reduce(total, group=mpu.get_data_parallel_group(with_context_parallel=True))
        return total.item()

    def _padding(self, chunk: torch.nn.Module, batch: Batch) -> Tensor:
        """Which tokens are padding, bool [1, t], as Megatron's routers ask for it."""
        padding = batch.padding
        if self._config.sequence_parallel and not bare(chunk).pre_process:
            # Megatron splits it where it splits the embedding: on the first stage alone.
            tp = mpu.get_tensor_model_parallel_world_size()
            padding = padding.chunk(tp, dim=1)[mpu.get_tensor_model_parallel_rank()]
        return padding


def _weighted(loss: LossFunction) -> Callable[[Batch, Tensor], tuple[Tensor, Tensor]]:
    def weighted(batch: Batch, output: Tensor) -> tuple[Tensor, Tensor]:
        total = loss(batch, *output)
        return total, total.detach()

    return weighted


def wire_gradients(args: argparse.Namespace, config: TransformerConfig, chunks: Sequence[Any]) -> None:
    """Sets when gradients and parameters are communicated, as `megatron.training.train` does."""
    config.finalize_model_grads_func = sum_gradients
    one = len(chunks) == 1

    def each(name: str) -> Any:
        methods = [getattr(chunk, name) for chunk in chunks]
        return methods[0] if one else methods

    if args.overlap_grad_reduce:
        config.no_sync_func = each("no_sync")
        if args.align_grad_reduce:
            config.grad_sync_func = each("start_grad_sync")
    if args.overlap_param_gather and args.align_param_gather:
        config.param_sync_func = each("start_param_sync")


def sum_gradients(chunks: list[torch.nn.Module], num_tokens: Any = None, **options: Any) -> None:
    """Reduces gradients over the world as Megatron does, but without its division by `num_tokens`."""
    finalize_model_grads(chunks, None, **options)
