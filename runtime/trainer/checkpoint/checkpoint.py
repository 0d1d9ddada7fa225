"""Saves and loads checkpoints in Megatron's distributed format, which any other parallel layout can read.

Model, optimizer, learning-rate schedule, random states and the controller's state are written together to a
hidden folder; with a critic also its model, optimizer and schedule, and the reference where no folder has it. When all
of it is on the disk, one rename gives the folder its name (`runtime/run/checkpoints.py`).

For an asynchronous checkpoint each rank copies its state, and a forked process writes it while training
continues. At most one checkpoint is being written at a time.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from verst.runtime.trainer.model import cpu_adapter

cpu_adapter.apply()  # before the imports below, which import megatron

from megatron.core import dist_checkpointing
from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
)
from torch.distributed.checkpoint.api import CheckpointException

from verst.runtime.run import checkpoints as folders
from verst.runtime.run.checkpoints import Manifest, StepCounts
from verst.runtime.run.folder import write_fault
from verst.runtime.trainer.checkpoint import state
from verst.runtime.trainer.checkpoint.export import model_digest
from verst.runtime.trainer.checkpoint.results_queue import start_results_queue
from verst.runtime.trainer.config import CheckpointConfig
from verst.runtime.trainer.model.trained_model import TrainedModel
from verst.runtime.trainer.step.frozen_weights import FrozenWeights
from verst.runtime.trainer.trainer import Trainer
from verst.sync.layout.binding import bare

log = logging.getLogger(__name__)

_POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class _Writing:
    """A checkpoint that is being written."""

    path: Path
    partial: Path
    manifest: Manifest
    controller: bytes


class Checkpointer:
    """Saves and loads a trainer. Every public method is collective over the trainer's world."""

    def __init__(self, trainer: Trainer, config: CheckpointConfig, timeout_s: float = 1800) -> None:
        self._trainer = trainer
        self._config = config
        self._timeout_s = timeout_s
        self._queue = AsyncCallsQueue()
        self._writing: _Writing | None = None
        self._cleaned: set[Path] = set()

    # --- saving -------------------------------------------------------------------------------------

    def save(self, path: Path, version: int, controller: bytes) -> None:
        """Writes the checkpoint `path` (`…/step-000100`), or starts writing it when checkpoints are
        asynchronous.

        Rank 0's `controller` is stored unchanged; the other ranks' is ignored. When the checkpoint is
        complete, earlier ones are removed as `checkpoint.keep…` says. Waits for an earlier checkpoint first,
        and raises as `finish` does.
        """
        self.finish(wait=True)
        self._clean(path.parent)
        partial = folders.partial_path(path, self._token())
        if self._is_first:
            partial.mkdir(parents=True)
        dist.barrier()
        self._writing = _Writing(path, partial, self._manifest(version), controller)
        start_results_queue()
        try:
            request = dist_checkpointing.save(
                self._sharded(loading=False, random=True, reference=self._writing.manifest.reference),
                str(partial),
                self._save_strategy(),
                async_sharded_save=self._config.asynchronous,
                async_strategy="mcore",
                content_metadata={"verst": folders.FORMAT},
            )
            if request is None:
                self._complete()
        except (CheckpointException, OSError) as error:
            raise self._given_up(error) from error
        if request is not None:
            self._queue.schedule_async_request(request)

    def finish(self, wait: bool) -> bool:
        """Returns whether no checkpoint is being written any more; with `wait`, waits until that is so.

        Raises TimeoutError when that takes too long, and RuntimeError with the cause when a writer failed.
        """
        deadline = time.monotonic() + self._timeout_s
        while self._writing is not None:
            try:
                finalized = self._queue.maybe_finalize_async_calls(blocking=False)
                if finalized:
                    self._complete()
            except (CheckpointException, OSError) as error:
                raise self._given_up(error) from error
            if finalized:
                continue
            if not wait:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._writing.path} was not written within {self._timeout_s} s")
            time.sleep(_POLL_S)
        return True

    def _complete(self) -> None:
        assert self._writing is not None
        writing = self._writing
        if self._is_first:
            folders.complete(writing.partial, writing.path, writing.manifest, writing.controller)
            self._prune(writing.path.parent)
        dist.barrier()
        self._writing = None

    def _prune(self, folder: Path) -> None:
        """Removes checkpoints that `checkpoint.keep…` does not keep. Scores come from the run's metrics.jsonl."""
        keep = self._config
        metrics = folder.parent / "metrics.jsonl"
        scores = folders.read_scores(metrics, keep.best.set, keep.best.metric) if keep.keep_best else {}
        evaluating = folders.being_evaluated(metrics) if keep.keep_best else None
        folders.prune(folder, keep.keep, keep.keep_every, keep.keep_best, scores, evaluating)

    def _given_up(self, error: BaseException) -> RuntimeError:
        """Removes the unfinished checkpoint, which may be what fills the disk; returns the error in one line.

        Megatron raises on all ranks, but only rank 0 gets the reason. The others wait here for it, because
        the first rank that answers the controller ends the run. An OSError occurs on rank 0 alone.
        """
        assert self._writing is not None
        writing, self._writing = self._writing, None
        fault = None
        if self._is_first:
            fault = write_fault(writing.partial)  # Megatron reports only that it was an OSError
            folders.discard(writing.partial)
        why = [str(error)]
        if isinstance(error, CheckpointException):
            failures = [f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items()]
            why = ["; ".join([*failures, *([fault] if fault else [])])]
            dist.broadcast_object_list(why, 0)
        return RuntimeError(f"{writing.path} could not be written: {why[0]}")

    def _manifest(self, version: int) -> Manifest:
        reference = self._trainer.reference
        policy, critic = _counts(self._trainer.model), self._critic
        return Manifest(
            format=folders.FORMAT,
            model=self._model_digest(),
            version=version,
            optimizer_steps=policy.optimizer_steps,
            scheduler_steps=policy.scheduler_steps,
            parallel=self._parallel_sizes,
            reference=reference is not None and reference.in_checkpoint(version),
            kl_coef=self._trainer.kl.coefficient if self._trainer.kl.adapts else None,
            critic=None if critic is None else _counts(critic),
        )

    # --- loading ------------------------------------------------------------------------------------

    def load(self, path: Path) -> int:
        """Restores the checkpoint `path` and returns its weight version.

        Random states are restored only under the layout that wrote them; any other layout keeps its fresh
        ones. Raises ValueError when `path` is not a complete checkpoint, holds a model of another shape, or
        lacks the critic or the reference policy that the recipe needs.
        """
        self._clean(path.parent)
        manifest = folders.read_manifest(path)
        if manifest.model != self._model_digest():
            raise ValueError(f"{path} holds another model than model.path: names or shapes of tensors differ")
        if self._critic is not None and manifest.critic is None:
            raise ValueError(
                f"{path} holds no critic, and the recipe has one (algorithm.critic): it was written without. Take "
                "algorithm.critic out of the recipe, or start the run anew"
            )
        same_layout = manifest.parallel == self._parallel_sizes
        reference = self._needs_reference(path, manifest)
        if reference:
            self._reference.take()  # makes the room
        loaded = dist_checkpointing.load(
            self._sharded(loading=True, random=same_layout, reference=reference),
            str(path),
            self._load_strategy(),
        )
        if reference:
            state.read_reference(self._reference.copies, loaded["reference"])
        counts = StepCounts(manifest.optimizer_steps, manifest.scheduler_steps)
        _read(self._trainer.model, loaded, counts)
        if self._critic is not None and manifest.critic is not None:
            _read(self._critic, loaded["critic"], manifest.critic)
        if same_layout:
            state.read_random_state(loaded["random"])
        if manifest.kl_coef is not None and self._trainer.kl.adapts:
            self._trainer.kl.coefficient = manifest.kl_coef
        if self._trainer.reference is not None:
            self._trainer.reference.begin(manifest.version, restored=reference)
        return manifest.version

    # --- saving and loading -------------------------------------------------------------------------

    def _needs_reference(self, path: Path, manifest: Manifest) -> bool:
        """Whether the reference must be read from a checkpoint: in the middle of a stage that has one of its own."""
        reference = self._trainer.reference
        if reference is None or not reference.in_checkpoint(manifest.version):
            return False
        if not manifest.reference:
            raise ValueError(
                f"{path} holds no reference policy, and algorithm.kl_coef is above 0: the reference is the weights of "
                f"an earlier step (algorithm.stages or algorithm.reference.refresh_interval), and this checkpoint "
                f"of version {manifest.version} was written without them. Set kl_coef to 0, or start the run anew"
            )
        return True

    def _sharded(self, *, loading: bool, random: bool, reference: bool) -> dict[str, Any]:
        model = state.sharded_model(_chunks(self._trainer.model))
        sharded = model | state.sharded_optimizer(self._trainer.model.optimizer, model, loading)
        if self._critic is not None:
            critic = state.sharded_model(_chunks(self._critic), "critic.")
            sharded["critic"] = critic | state.sharded_optimizer(self._critic.optimizer, critic, loading)
        if reference:
            held = self._reference
            sharded["reference"] = state.sharded_reference(model, held.parameters, held.copies)
        if random:
            parallel = self._trainer.parallel
            sharded["random"] = state.sharded_random_state(parallel.rank, parallel.world_size)
        return sharded

    @property
    def _critic(self) -> TrainedModel | None:
        critic = self._trainer.models.get("critic")
        return None if critic is None else critic.trained

    @property
    def _reference(self) -> FrozenWeights:
        assert self._trainer.reference is not None
        return self._trainer.reference.weights

    @property
    def _is_first(self) -> bool:
        return self._trainer.parallel.rank == 0

    @property
    def _parallel_sizes(self) -> dict[str, int | bool | None]:
        return dataclasses.asdict(self._trainer.model.bound.layout.parallel)

    def _model_digest(self) -> str:
        return model_digest(self._trainer.model.bound.layout)

    def _save_strategy(self) -> FullyParallelSaveStrategyWrapper:
        """Each rank of a data-parallel group writes its part of the tensors that all of them hold."""
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        return FullyParallelSaveStrategyWrapper(TorchDistSaveShardedStrategy(), group)

    def _load_strategy(self) -> FullyParallelLoadStrategyWrapper:
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        return FullyParallelLoadStrategyWrapper(TorchDistLoadShardedStrategy(), group)

    def _clean(self, folder: Path) -> None:
        """Removes unfinished checkpoints that an earlier life of the run left behind, once per folder."""
        if folder not in self._cleaned:
            self._cleaned.add(folder)
            if self._is_first and (removed := folders.clean(folder)):
                log.warning("removed unfinished checkpoints: %s", ", ".join(removed))
            dist.barrier()

    def _token(self) -> int:
        """A random number, the same on all ranks."""
        token = torch.tensor([secrets.randbits(48)], device=self._trainer.parallel.device)
        dist.broadcast(token, 0)
        return int(token.item())


def _chunks(model: TrainedModel) -> list[torch.nn.Module]:
    return [bare(chunk) for chunk in model.chunks]


def _counts(model: TrainedModel) -> StepCounts:
    return StepCounts(state.optimizer_steps(model.optimizer), model.scheduler.num_steps)


def _read(model: TrainedModel, loaded: dict[str, Any], counts: StepCounts) -> None:
    """Restores a model, its optimizer and its schedule from the form of `Checkpointer._sharded`."""
    state.read_model(_chunks(model), loaded)
    state.read_optimizer(model.optimizer, loaded, counts.optimizer_steps)
    model.scheduler.num_steps = 0
    model.scheduler.step(increment=counts.scheduler_steps)
