"""One rank's part of the model, with its optimizer and learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.messages.model_config import ArgumentValue, ModelConfig
from verst.runtime.trainer.model import arguments
from verst.runtime.trainer.model.model import build_chunks
from verst.runtime.trainer.model.optimizer import build_optimizer, build_scheduler, optimizer_tensors
from verst.runtime.trainer.parallel import Parallel
from verst.sync.hf.folder import import_weights
from verst.sync.hf.model_config import read_model
from verst.sync.layout import layout
from verst.sync.layout.binding import bind
from verst.sync.layout.scalar_head import with_score_head, with_value_head, without_head


class TrainedModel:
    """The model of a Hugging Face checkpoint, ready to train.

    `hf_config` is the checkpoint's completed configuration and `family` its model family. `args` and
    `transformer_config` are Megatron's arguments. `chunks` are the model chunks, wrapped in DDP, and `bound`
    maps their parameters to the checkpoint's tensors.
    """

    def __init__(
        self,
        model: ModelConfig,
        megatron: Mapping[str, ArgumentValue],
        parallel: Parallel,
        train_steps: int,
        *,
        routing_replay: bool = False,
        critic: str | None = None,
        scores: bool = False,
    ) -> None:
        """Builds the model and reads its weights from `model.path`. Collective over the world.

        `critic`: the folder with whose weights a critic starts. It has a value head, and the process groups of the
        policy, which is built before it. `scores`: the model is a reward model, with a score in place of its logits.
        Raises ValueError when the recipe's arguments or the checkpoint do not fit.
        """
        self._parallel = parallel
        self.family, self.hf_config = read_model(model.path, model.family)
        shape = self.family.megatron_args(self.hf_config)
        has_head = critic is not None or scores
        self.args, self.transformer_config = arguments.parse(
            megatron,
            parallel.world_size,
            # A head of one row cannot be tied to the embedding.
            shape | {"untie-embeddings-and-output-weights": True} if has_head else shape,
            dtype=model.dtype,
            train_steps=train_steps,
            rank=parallel.rank,
            routing_replay=routing_replay,
        )
        if critic is None:
            parallel.split(self.args)
            _seed(self.args.seed, parallel)
        self.chunks = build_chunks(self.args, self.transformer_config, scalar_head=has_head)
        sizes = layout.ParallelSizes.from_arguments(self.args)
        table = self.family
        if has_head:
            table = with_score_head(self.family) if scores else with_value_head(self.family)
        self.bound = bind(layout.Layout(table, self.hf_config, sizes, parallel.rank), self.chunks)
        stored = without_head(self.bound, self.family) if has_head else self.bound
        import_weights(critic or model.path, stored)
        self.optimizer = build_optimizer(self.args, self.chunks)
        self.scheduler = build_scheduler(self.args, self.optimizer, train_steps)

    @property
    def pad_multiple(self) -> int:
        """Padded lengths must be multiples of this: tensor and context parallelism divide sequences."""
        cp = 2 * self._parallel.cp_size if self._parallel.cp_size > 1 else 1
        return cp * (self._parallel.tp_size if self.transformer_config.sequence_parallel else 1)

    @property
    def microbatch_multiple(self) -> int:
        """The number of micro-batches must be a multiple of this.

        Interleaved pipelines take micro-batches in groups.
        """
        return self._parallel.pp_size if len(self.chunks) > 1 else 1

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the whole model; tied ones count once. Collective over the world."""
        shapes = {piece.hf: piece.hf_shape for piece, _ in self.bound.pieces()}
        gathered: list[dict[str, tuple[int, ...]]] = [{} for _ in range(self._parallel.world_size)]
        dist.all_gather_object(gathered, shapes)
        whole = {name: shape for one in gathered for name, shape in one.items()}
        return sum(int(np.prod(shape)) for shape in whole.values())

    def zero_gradients(self) -> None:
        """Sets all gradients to zero, as each step does before its first backward pass."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def update(self, name: str, loss: float, lr: float | None) -> tuple[float, float]:
        """Takes one optimizer step; returns the learning rate that it used and the gradient norm.

        `name` is the update's in messages: "step 3". `lr` replaces the schedule's learning rate in this update alone.
        Raises FloatingPointError, and leaves the weights as they are, when the `loss` or a gradient of any rank is not
        finite. Megatron has such a check of its own, which a recipe can turn off, and which then lets the optimizer
        write NaN into the weights. Collective over the world.
        """
        if not math.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss}; the weights are not changed")
        if self._parallel.world_sum(not _all_finite(self.gradients())):
            raise FloatingPointError(
                f"{name}: gradients hold values that are not finite; the weights are not changed"
            )
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_mult", 1.0)
        used = max(group["lr"] for group in self.optimizer.param_groups)
        updated, grad_norm, _ = self.optimizer.step()
        if not updated:
            raise FloatingPointError(f"{name}: gradients hold values that are not finite")
        self.scheduler.step(increment=1)
        return used, float(grad_norm)

    def weights(self) -> list[Tensor]:
        """This rank's parameters."""
        return [p.data for chunk in self.chunks for p in chunk.parameters()]

    def gradients(self) -> list[Tensor]:
        """This rank's gradient buffers."""
        return [b.grad_data for c in self.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]

    def optimizer_state(self) -> Iterable[Tensor]:
        """This rank's master weights and moments. The optimizer creates its moments in its first step."""
        return optimizer_tensors(self.optimizer)


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor holds NaN or an infinity. The largest magnitude says it, in one pass and without memory."""
    largest = [torch.linalg.vector_norm(t, ord=math.inf) for t in tensors if t.numel()]
    return not largest or bool(torch.stack([x.float() for x in largest]).isfinite().all())


def _seed(seed: int, parallel: Parallel) -> None:
    """Seeds torch and Megatron's random-state tracker, each pipeline stage with its own seed."""
    from megatron.core import tensor_parallel

    torch.manual_seed(seed + 100 * parallel.pp_rank)
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 100 * parallel.pp_rank)
