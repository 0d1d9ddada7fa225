"""One of the models that a trainer rank trains, and how it takes an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from verst.runtime.trainer.model.trained_model import TrainedModel
from verst.runtime.trainer.replay.routing import RoutingReplay
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.forward import Head, Pipeline
from verst.runtime.trainer.step.phases import Phases
from verst.runtime.trainer.step.updates import Update

ModelName = Literal["policy", "critic"]


class UpdateObjective(Protocol):
    """The objective of one update of a model."""

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """The share of a micro-batch in the objective, a scalar.

        Its arguments are the `Batch`, and each row of what the head makes of it, fp32 [n].
        """
        ...

    def refuse_infinite(self) -> None:
        """Raises HookError if a function of the recipe returned NaN or infinity. Call it before the update."""
        ...

    def reduce(self) -> tuple[float, dict[str, float]]:
        """The whole objective and its figures, equal on every rank. Collective over the world."""
        ...


class ModelInTraining:
    """This rank's part of one model: its weights with their optimizer and schedule (`trained`), and its pipeline.

    "policy" is the model that the run is about, in runs without a policy stage, too.

    With `replay` its routers replay choices that were made before; without, they choose freely.
    """

    def __init__(
        self, name: ModelName, trained: TrainedModel, head: Head, replay: RoutingReplay | None
    ) -> None:
        self._prefix = "" if name == "policy" else f"{name}_"  # of the names of its phases
        self.trained = trained
        self.pipeline = Pipeline(trained.args, trained.transformer_config, trained.chunks, replay, head)

    def update(
        self,
        name: str,
        batches: Sequence[Batch],
        objective: UpdateObjective,
        timed: Phases,
        *,
        lr: float | None = None,
        check: Callable[[Mapping[str, float]], None] = lambda metrics: None,
    ) -> Update:
        """Takes one update of the optimizer on the micro-batches. Collective over the world.

        `name` and `lr` are those of `TrainedModel.update`. `check` sees the figures before the weights are updated, and
        raises if they must not be. Raises FloatingPointError as `TrainedModel.update`.
        """
        with timed(f"{self._prefix}forward_backward"):
            self.trained.zero_gradients()
            self.pipeline.train(batches, objective)
        objective.refuse_infinite()
        loss, metrics = objective.reduce()
        check(metrics)
        with timed(f"{self._prefix}optimizer"):
            used, grad_norm = self.trained.update(name, loss, lr)
        return Update(loss, grad_norm, used, metrics)

    def measure(self, batches: Sequence[Batch], objective: UpdateObjective, timed: Phases) -> Update:
        """Computes the objective and its figures, and changes nothing: gradient norm and learning rate are 0.

        Collective over the world.
        """
        with timed("forward"):
            self.pipeline.evaluate(batches, objective)
        objective.refuse_infinite()
        loss, metrics = objective.reduce()
        return Update(loss, 0.0, 0.0, metrics)
