"""One rank's part of the model with its optimizer and learning-rate schedule, built from a checkpoint and a recipe."""

from __future__ import annotations

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
from verst.sync.hf.folder import import_weights, read_config
from verst.sync.layout import layout
from verst.sync.layout.binding import bind
from verst.sync.layout.mapping import family_for


class TrainedModel:
    """`family` and `hf_config` describe the checkpoint, `args` and `transformer_config` are Megatron's arguments.

    `chunks` are the model chunks in DDP and `bound` is their place in the Hugging Face checkpoint; checkpoints and
    weight sync read both, and checkpoints also read `optimizer` and `scheduler`.
    """

    def __init__(
        self,
        model: ModelConfig,
        megatron: Mapping[str, ArgumentValue],
        parallel: Parallel,
        train_steps: int,
        *,
        routing_replay: bool,
    ) -> None:
        """Builds the model and reads its weights from `model.path`. Collective over the world.

        Raises ValueError for a recipe or a checkpoint that does not fit.
        """
        self._parallel = parallel
        self.hf_config = read_config(model.path)
        self.family = family_for(self.hf_config, model.family)
        self.args, self.transformer_config = arguments.parse(
            megatron,
            parallel.world_size,
            self.family.megatron_args(self.hf_config),
            dtype=model.dtype,
            train_steps=train_steps,
            rank=parallel.rank,
            routing_replay=routing_replay,
        )
        parallel.split(self.args)
        _seed(self.args.seed, parallel)
        self.chunks = build_chunks(self.args, self.transformer_config)
        sizes = layout.ParallelSizes.from_arguments(self.args)
        self.bound = bind(layout.Layout(self.family, self.hf_config, sizes, parallel.rank), self.chunks)
        import_weights(model.path, self.bound)
        self.optimizer = build_optimizer(self.args, self.chunks)
        self.scheduler = build_scheduler(self.args, self.optimizer, train_steps)

    @property
    def pad_multiple(self) -> int:
        """Sequence lengths must be multiples of it: tensor and context parallelism divide them."""
        cp = 2 * self._parallel.cp_size if self._parallel.cp_size > 1 else 1
        return cp * (self._parallel.tp_size if self.transformer_config.sequence_parallel else 1)

    @property
    def microbatch_multiple(self) -> int:
        """The number of micro-batches must be a multiple of it: interleaved pipelines fill in groups."""
        return self._parallel.pp_size if len(self.chunks) > 1 else 1

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, tied ones once. Collective over the world."""
        shapes = {piece.hf: piece.hf_shape for piece, _ in self.bound.pieces()}
        gathered: list[dict[str, tuple[int, ...]]] = [{} for _ in range(self._parallel.world_size)]
        dist.all_gather_object(gathered, shapes)
        whole = {name: shape for one in gathered for name, shape in one.items()}
        return sum(int(np.prod(shape)) for shape in whole.values())

    def zero_gradients(self) -> None:
        """Sets all gradients to zero before a step's backward passes."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def update(self, step: int, lr: float | None) -> tuple[float, float]:
        """Takes one optimizer step with the gradients at hand; returns its learning rate and the gradient norm.

        `lr` overrides the schedule's learning rate for this one step. Raises FloatingPointError, naming `step`, when
        gradients are not finite.
        """
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_mult", 1.0)
        used = max(group["lr"] for group in self.optimizer.param_groups)
        updated, grad_norm, _ = self.optimizer.step()
        if not updated:
            raise FloatingPointError(f"step {step}: gradients hold values that are not finite")
        self.scheduler.step(increment=1)
        return used, float(grad_norm)

    def weights(self) -> list[Tensor]:
        """The parameters' data on this rank."""
        return [p.data for chunk in self.chunks for p in chunk.parameters()]

    def gradients(self) -> list[Tensor]:
        """The gradient buffers of this rank."""
        return [b.grad_data for c in self.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]

    def optimizer_state(self) -> Iterable[Tensor]:
        """Masters and moments on this rank; an optimizer makes its moments in its first step."""
        return optimizer_tensors(self.optimizer)


def _seed(seed: int, parallel: Parallel) -> None:
    """Seeds torch and Megatron's tracker of random states; each pipeline stage has its own seed."""
    from megatron.core import tensor_parallel

    torch.manual_seed(seed + 100 * parallel.pp_rank)
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 100 * parallel.pp_rank)
