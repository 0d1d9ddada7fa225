"""The reference: the weights that a stage compares its model with, which are others in each stage that has one."""

from __future__ import annotations

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.references import ReferenceSource, reference_at, reference_of
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.model.trained_model import TrainedModel
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.step.frozen_weights import FrozenWeights
from verst.sync.hf.folder import import_weights


class Reference:
    """Keeps one copy of weights, and fills it where a stage begins or the reference is refreshed."""

    def __init__(self, algorithm: AlgorithmConfig, model: TrainedModel, parallel: Parallel) -> None:
        """There is no copy before `begin`."""
        self._algorithm = algorithm
        self._model = model
        self._parallel = parallel
        self.weights = FrozenWeights("reference", model.chunks)
        self._held: ReferenceSource | None = None  # what `weights` are of

    def begin(self, version: int, *, restored: bool = False) -> None:
        """Takes the reference of the stage that trains `version`, if its weights are those that the model has now, or
        are in a folder. `restored`: they are in `weights` already, out of a checkpoint. Collective over the world."""
        source = reference_at(self._algorithm, version)
        if restored:
            self._held = source
        elif source is not None:
            self._fill(source, version)

    def take(self, plan: StepPlan) -> None:
        """Takes the reference before a plan is trained or measured, where that is due. Collective over the world."""
        source = reference_of(self._algorithm, plan.stage)
        if source is None:
            return
        if not self._fill(source, plan.step):
            raise RuntimeError(
                f"step {plan.step + 1}: the reference of version {source.version} is not there"
            )

    def in_checkpoint(self, version: int) -> bool:
        """Whether a checkpoint of this version holds the reference, because no folder has it."""
        source = reference_at(self._algorithm, version)
        return source is not None and source.only_in_checkpoints(version)

    def _fill(self, source: ReferenceSource, version: int) -> bool:
        """Whether the copy is that of `source` now."""
        if self._held == source and not (source.refresh_interval and source.is_due(version)):
            return True
        if source.path is not None:
            self._read(source.path)
        elif source.is_due(version):
            self.weights.take()
        else:
            return False
        self._held = source
        return True

    def _read(self, path: str) -> None:
        """Reads the weights of a folder, through the model's own parameters.

        Raises ValueError if they do not fit, on all ranks.
        """
        bound = self._model.bound
        ours = [buffer.clone() for _, buffer in bound.frozen]
        self.weights.take()
        with self.weights.in_place():  # it exchanges equal weights, and gives the model its own back
            import_weights(path, bound)
        differ = 0
        for (_, buffer), own in zip(bound.frozen, ours, strict=True):
            differ += not buffer.equal(own)
            buffer.copy_(own)
        # The reference's pass runs with the model's buffers. Summed, so that all ranks refuse together.
        if self._parallel.world_sum(differ):
            raise ValueError(
                f"the reference {path} has other values than the model in tensors that are not trained, such as a "
                "router's bias; it can differ in trained weights only"
            )
