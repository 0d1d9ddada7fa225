"""Which model is the reference of each stage: a pure function of the recipe."""

from __future__ import annotations

from dataclasses import dataclass

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import DpoStage


@dataclass(frozen=True)
class ReferenceSource:
    """Whose weights the reference of a stage has."""

    version: int  # the weight version that the stage begins with, unless `path` says otherwise
    path: str | None = None  # a Hugging Face folder
    refresh_interval: int | None = (
        None  # steps after which it becomes the weights of that moment, again and again
    )

    def is_due(self, version: int) -> bool:
        """Whether the weights of this version become the reference before they are trained."""
        if self.path is not None:
            return False
        done = version - self.version
        return done == 0 or bool(self.refresh_interval and done > 0 and done % self.refresh_interval == 0)

    def only_in_checkpoints(self, version: int) -> bool:
        """Whether a life that begins with this version finds the reference nowhere else."""
        if self.path is not None or version <= self.version:
            return False
        return self.version > 0 or self.refresh_interval is not None


def reference_of(algorithm: AlgorithmConfig, stage: int | None) -> ReferenceSource | None:
    """The reference of a stage with rows, by its number, or of the policy stage (None). None if it has none."""
    if stage is None:
        if not algorithm.generates or not algorithm.kl_coef:
            return None
        given = algorithm.reference
        return ReferenceSource(algorithm.offline_steps, given.path, given.refresh_interval)
    span = next(span for span in algorithm.spans if span.number == stage)
    if not isinstance(span.stage, DpoStage):
        return None
    return ReferenceSource(span.first, span.stage.reference.path)


def reference_at(algorithm: AlgorithmConfig, version: int) -> ReferenceSource | None:
    """The reference of the stage that trains this version."""
    spans = (span for span in algorithm.spans if span.first <= version < span.end)
    return reference_of(algorithm, next((span.number for span in spans), None))


def needs_reference(algorithm: AlgorithmConfig) -> bool:
    """Whether any stage has a reference."""
    return bool(algorithm.generates and algorithm.kl_coef) or any(
        isinstance(stage, DpoStage) for stage in algorithm.stages
    )
