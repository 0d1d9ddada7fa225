"""One rank's trainer: a Megatron model, its optimizer, and the step. No sockets, no run folder, no actors.

All ranks call the same methods in the same order; every method is collective over the world. Calls come from one
thread (see `cpu_adapter`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.messages.jobs import Hold, HoldReport
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import LossKind, StepPlan, StepReport
from verst.runtime.metrics.trace import NO_TRACE, Tracer
from verst.runtime.trainer.config import TrainerConfig
from verst.runtime.trainer.model import arguments, cpu_adapter
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch, Collator, Weighting
from verst.runtime.trainer.step.phases import Phases
from verst.sync.hf.folder import import_weights, read_config
from verst.sync.layout import layout
from verst.sync.layout.binding import bind
from verst.sync.layout.mapping import family_for

cpu_adapter.apply()  # before what follows imports megatron

from verst.runtime.trainer.model.model import build_chunks
from verst.runtime.trainer.model.optimizer import build_optimizer, build_scheduler
from verst.runtime.trainer.replay.probe import RoutingProbe
from verst.runtime.trainer.replay.routing import RoutingReplay
from verst.runtime.trainer.share.fetch import Replayed
from verst.runtime.trainer.share.routing import entries_of, require_routing
from verst.runtime.trainer.share.selection import selected_of
from verst.runtime.trainer.step.forward import Pipeline
from verst.runtime.trainer.step.memory import DeviceMemory, begin_peak, optimizer_tensors, peak_gib
from verst.runtime.trainer.step.objective import Objective
from verst.runtime.trainer.step.reference import ReferenceWeights
from verst.runtime.trainer.step.shown import ShownSamples


class Trainer:
    """`family`, `hf_config`, `args` (Megatron's), `chunks` (model chunks in DDP), `bound` (their place in the
    Hugging Face checkpoint), `optimizer`, `scheduler` and `parallel` are for the checkpoint and weight sync.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TrainerConfig,
        algorithm: AlgorithmConfig,
        parallel: Parallel,
        train_steps: int,
        trace: Tracer = NO_TRACE,
    ) -> None:
        """Builds the model and reads its weights from `model.path`. Raises ValueError for a recipe or a
        checkpoint that does not fit."""
        self.config, self.algorithm, self.parallel = config, algorithm, parallel
        self._trace = trace
        self.hf_config = read_config(model.path)
        self.family = family_for(self.hf_config, model.family)
        self.args, self.transformer_config = arguments.parse(
            config.megatron,
            parallel.world_size,
            self.family.megatron_args(self.hf_config),
            dtype=model.dtype,
            train_steps=train_steps,
            rank=parallel.rank,
            routing_replay=algorithm.routing_replay != "off",
        )
        parallel.split(self.args)
        _seed(self.args.seed, parallel)
        self.chunks = build_chunks(self.args, self.transformer_config)
        sizes = layout.ParallelSizes.from_arguments(self.args)
        self.bound = bind(layout.Layout(self.family, self.hf_config, sizes, parallel.rank), self.chunks)
        import_weights(model.path, self.bound)
        self.optimizer = build_optimizer(self.args, self.chunks)
        self.scheduler = build_scheduler(self.args, self.optimizer, train_steps)
        self._reference = ReferenceWeights(self.chunks) if algorithm.kl_coef > 0 else None
        self.replay = (
            RoutingReplay(self.chunks, self.transformer_config, parallel, self.pad_multiple)
            if algorithm.routing_replay != "off"
            else None
        )
        self._pipeline = Pipeline(
            self.args,
            self.transformer_config,
            self.chunks,
            self.replay,
            with_entropy_grad=algorithm.entropy_coef != 0,
        )
        self._collate = self._collator()
        self.memory = DeviceMemory(
            parallel.device,
            weights=lambda: [p.data for chunk in self.chunks for p in chunk.parameters()],
            state=self._optimizer_and_reference,
            gradients=lambda: [
                b.grad_data for c in self.chunks for b in (*c.buffers, *c.expert_parallel_buffers)
            ],
        )

    def _optimizer_and_reference(self) -> Iterator[Tensor]:
        yield from optimizer_tensors(self.optimizer)
        yield from self._reference.copies if self._reference is not None else ()

    def hold(self, what: Hold) -> HoldReport:
        """Keeps all of the rank's memory on its device, the weights alone (to send them), or nothing."""
        if self.memory.holds == "all":
            self.optimizer.zero_grad()  # gradients of the masters may be copies, and are made anew
        return self.memory.hold(what)

    @property
    def pad_multiple(self) -> int:
        """Sequence lengths must be multiples of it: tensor and context parallelism divide them."""
        cp = 2 * self.parallel.cp_size if self.parallel.cp_size > 1 else 1
        return cp * (self.parallel.tp_size if self.transformer_config.sequence_parallel else 1)

    @property
    def microbatch_multiple(self) -> int:
        """The number of micro-batches must be a multiple of it: interleaved pipelines fill in groups."""
        return self.parallel.pp_size if len(self.chunks) > 1 else 1

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, tied ones once."""
        shapes = {piece.hf: piece.hf_shape for piece, _ in self.bound.pieces()}
        gathered: list[dict[str, tuple[int, ...]]] = [{} for _ in range(self.parallel.world_size)]
        dist.all_gather_object(gathered, shapes)
        whole = {name: shape for one in gathered for name, shape in one.items()}
        return sum(int(np.prod(shape)) for shape in whole.values())

    @property
    def replayed(self) -> Replayed | None:
        """What this rank needs of the engine's choices; None where those are not replayed."""
        if self.replay is None or self.algorithm.routing_replay != "rollout":
            return None
        selection = self.replay.selection
        return Replayed(
            self.replay.share, self.replay.moe_layers, selection.share if selection is not None else None
        )

    def replays_engine(self, plan: StepPlan) -> bool:
        """Whether `train` wants the engine's routing for this plan: demonstrations come from no engine."""
        return self.algorithm.routing_replay == "rollout" and plan.loss == "policy"

    def train(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None = None,
        selected: Sequence[torch.Tensor] | None = None,
    ) -> StepReport:
        """One optimiser step on this data-parallel rank's micro-batches.

        `samples` by (group, index): those that the plan gives to this data-parallel rank, the same on all of
        its tensor, context and pipeline ranks. `routing` where the engine's is replayed: this rank's entries of
        each micro-batch (`routing_share.py`); `selected` the same of its sparse attention (`selection_share.py`).
        """
        timed = Phases(self._trace, plan.step)
        begin_peak(self.parallel.device)
        batches = self._collate_plan(plan, samples, routing, selected)
        if plan.loss == "policy":
            batches = self._with_fixed_policies(batches, timed)
        probe = self._probe(plan, batches, timed)
        if self.replay is not None:
            self.replay.begin_step(probe.batches)
        shown = ShownSamples(plan, samples, batches, self.parallel, self.replay)
        objective = Objective(self.algorithm, plan, self.parallel, (shown.see, probe.see))
        with timed("forward_backward"):
            for chunk in self.chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            self._pipeline.train(batches, objective)
        with timed("optimizer"):
            lr = self._learning_rate(plan.loss)
            updated, grad_norm, _ = self.optimizer.step()
            if not updated:
                raise FloatingPointError(f"step {plan.step}: gradients hold values that are not finite")
            self.scheduler.step(increment=1)
        loss, metrics = objective.reduce()
        return StepReport(
            step=plan.step,
            loss=loss,
            grad_norm=float(grad_norm),
            lr=lr,
            tokens=int(self._world_sum(sum(b.real_tokens for b in batches) * self._counts_tokens)),
            metrics=metrics | self._routing_metrics(batches) | probe.reduce() | self._fullest_rank(),
            seconds=timed.seconds,
            shown=shown.take(),
        )

    def logprobs(self, samples: Sequence[Sample]) -> list[np.ndarray] | None:
        """Each sample's response log-probabilities, fp32 [R]; None before the last pipeline stage.

        All ranks of a data-parallel replica pass the same samples; replicas may pass different ones.
        """
        length = max((s.length for s in samples), default=1)
        rows = max(1, self.config.max_tokens_per_microbatch // length)
        cuts = [samples[i : i + rows] for i in range(0, len(samples), rows)]
        count = int(self._world_max(len(cuts)))
        count += -count % self.microbatch_multiple
        cuts += [[]] * (count - len(cuts))
        batches = [
            self._collate(cut, None, length, self._entries_of(cut, length), self._selected_of(cut, length))
            for cut in cuts
        ]
        found = self._pipeline.logprobs(batches)
        if not self.parallel.is_last_stage:
            return None
        results = [np.zeros(len(s.response_ids), np.float32) for s in samples]
        for i, (batch, logprobs) in enumerate(zip(batches, found, strict=True)):
            values = logprobs.cpu().numpy()
            for row in range(len(cuts[i])):
                mine = batch.places[:, 0] == row
                results[i * rows + row][batch.places[mine, 1]] = values[mine]
        return self._over_context_parallel_ranks(results)

    def _over_context_parallel_ranks(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Puts together what each rank filled in of arrays that are zero elsewhere."""
        if self.parallel.cp_size == 1 or not parts:
            return parts
        from megatron.core import parallel_state as mpu

        whole = torch.from_numpy(np.concatenate(parts)).to(self.parallel.device)
        dist.all_reduce(whole, group=mpu.get_context_parallel_group())
        return np.split(whole.cpu().numpy(), np.cumsum([len(p) for p in parts])[:-1])

    def _entries_of(self, samples: Sequence[Sample], length: int) -> torch.Tensor | None:
        """This rank's entries of whole samples; None where they carry no routing to replay."""
        if self.replay is None or any(s.routing is None for s in samples):
            return None
        return entries_of(samples, length, self.replay.share, self.replay.moe_layers, self.replay.entry)

    def _selected_of(self, samples: Sequence[Sample], length: int) -> torch.Tensor | None:
        """The same for sparse attention."""
        if self.replay is None or self.replay.selection is None or any(s.selected is None for s in samples):
            return None
        return selected_of(samples, length, self.replay.selection.share)

    def close(self) -> None:
        """Leaves the process groups."""
        self.parallel.close()

    def _collator(self) -> Collator:
        return Collator(
            cp_rank=self.parallel.cp_rank,
            cp_size=self.parallel.cp_size,
            multiple=self.pad_multiple,
            device=self.parallel.device,
            share=self.replay.share if self.replay is not None else None,
        )

    def _collate_plan(
        self,
        plan: StepPlan,
        samples: Mapping[tuple[int, int], Sample],
        routing: Sequence[torch.Tensor] | None,
        selected: Sequence[torch.Tensor] | None,
    ) -> list[Batch]:
        microbatches = plan.microbatches[self.parallel.dp_rank]
        if self.replay is not None and self.replays_engine(plan):
            require_routing(list(samples.values()), self.replay.moe_layers, self.replay.entry)
            if routing is None:
                raise ValueError(f"step {plan.step}: the engine's routing is replayed, and none was given")
            if self.replay.selection is not None and selected is None:
                raise ValueError(
                    f"step {plan.step}: the engine's sparse attention is replayed; none was given"
                )
        batches = []
        for i, microbatch in enumerate(microbatches):
            chosen = [samples[ref.group, ref.index] for ref in microbatch.samples]
            weightings = [Weighting(ref.advantage, ref.token_weight) for ref in microbatch.samples]
            replays = self.replays_engine(plan)
            entries = routing[i] if routing is not None and replays else None
            choices = selected[i] if selected is not None and replays else None
            batches.append(self._collate(chosen, weightings, microbatch.padded_length, entries, choices))
        return batches

    def _with_fixed_policies(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """The batches with the log-probabilities that the loss compares with, where it does not take them from
        the pass that it trains on."""
        recompute = self.config.old_logprobs == "recompute"
        own_routing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self.replay is not None and self.algorithm.routing_replay == "trainer":
            own_routing = self.replay.recording()
        if recompute or self.algorithm.routing_replay == "trainer":
            with timed("old_logprobs"), own_routing:
                found = self._pipeline.logprobs(batches)
            batches = _with(batches, "old_logprobs", found if recompute else [])
        if self.config.old_logprobs == "rollout":
            batches = [dataclasses.replace(b, old_logprobs=b.rollout_logprobs) for b in batches]
        if self._reference is not None:
            with timed("ref_logprobs"), self._reference.in_place(), self._free_routing():
                found = self._pipeline.logprobs(batches)
            batches = _with(batches, "reference_logprobs", found)
        return batches

    def _fullest_rank(self) -> dict[str, float]:
        """GPU memory in this step, of the rank that had most of it."""
        return {name: self._world_max(gib) for name, gib in peak_gib(self.parallel.device).items()}

    def _free_routing(self) -> contextlib.AbstractContextManager[None]:
        """Inside, routers choose for themselves: another model's weights would send tokens elsewhere."""
        return self.replay.free() if self.replay is not None else contextlib.nullcontext()

    def _probe(self, plan: StepPlan, batches: Sequence[Batch], timed: Phases) -> RoutingProbe:
        """What the step measures of replay: without it, the log-probabilities of one of its micro-batches."""
        interval = self.algorithm.routing_probe_interval
        if not self.replays_engine(plan) or not interval or plan.step % interval:
            return RoutingProbe(self.parallel, [], [])
        # As many as an interleaved pipeline goes by.
        groups = len(batches) // self.microbatch_multiple
        first = plan.step // interval % groups * self.microbatch_multiple
        chosen = batches[first : first + self.microbatch_multiple]
        with timed("routing_probe"), self._free_routing():
            return RoutingProbe(self.parallel, chosen, self._pipeline.logprobs(chosen))

    def _routing_metrics(self, batches: Sequence[Batch]) -> dict[str, float]:
        return self.replay.metrics(batches, self._world_sum) if self.replay is not None else {}

    @property
    def _counts_tokens(self) -> bool:
        """One rank of each data-parallel replica counts the replica's tokens."""
        return self.parallel.is_model_parallel_source

    def _learning_rate(self, loss: LossKind) -> float:
        """The step's learning rate; the recipe's own for supervised steps is set for this one step."""
        warm_start = self.algorithm.warm_start
        if loss == "sft" and warm_start is not None and warm_start.lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = warm_start.lr * group.get("lr_mult", 1.0)
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _world_sum(self, value: float) -> float:
        total = torch.tensor(float(value), dtype=torch.float64, device=self.parallel.device)
        dist.all_reduce(total)
        return total.item()

    def _world_max(self, value: float) -> float:
        largest = torch.tensor(float(value), dtype=torch.float64, device=self.parallel.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.item()


def _with(
    batches: list[Batch], name: Literal["old_logprobs", "reference_logprobs"], logprobs: list[torch.Tensor]
) -> list[Batch]:
    """The batches with a field filled in; stages before the last have nothing to fill in."""
    if not logprobs:
        return batches
    filled: list[dict[str, Any]] = [{name: p} for p in logprobs]
    return [dataclasses.replace(b, **f) for b, f in zip(batches, filled, strict=True)]


def _seed(seed: int, parallel: Parallel) -> None:
    from megatron.core import tensor_parallel

    torch.manual_seed(seed + 100 * parallel.pp_rank)
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 100 * parallel.pp_rank)
