"""The weight of the KL from the reference: fixed, or held at a target by a proportional controller."""

from __future__ import annotations

from verst.runtime.algorithms.config import AlgorithmConfig

_LARGEST_ERROR = 0.2


class KlControl:
    """Adapts `algorithm.kl_coef` to `algorithm.kl_target`: beta <- beta * (1 + K * error) after each step, where error
    is (KL - target) / target, clipped to 0.2 (arXiv:1909.08593, section 2.2).

    K is the step's samples / `algorithm.kl_horizon`; the paper's K of 0.1 is a horizon of ten steps.
    """

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self.coefficient = algorithm.kl_coef
        self._target = algorithm.kl_target
        self._rate = algorithm.prompts_per_step * algorithm.samples_per_prompt / algorithm.kl_horizon

    @property
    def adapts(self) -> bool:
        """Whether the coefficient changes in the run."""
        return self._target is not None

    def measured(self, kl: float) -> None:
        """Takes in a step's mean KL per trained token, in nats."""
        if self._target is None:
            return
        error = max(-_LARGEST_ERROR, min(_LARGEST_ERROR, kl / self._target - 1))
        self.coefficient *= 1 + self._rate * error
