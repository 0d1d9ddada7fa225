"""Finds the log-probabilities of the policies that a step holds fixed: the old policy and the reference."""

from __future__ import annotations

import dataclasses
from typing import Literal

from verst.runtime.trainer.replay.routing import RoutingReplay, routed_freely
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.forward import Pipeline
from verst.runtime.trainer.step.phases import Phases
from verst.runtime.trainer.step.reference import ReferenceWeights


class FixedPolicies:
    """Fills in the log-probabilities that the loss compares with.

    Log-probabilities that come from the trained pass itself stay empty.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        reference: ReferenceWeights | None,
        replay: RoutingReplay | None,
        *,
        old_logprobs: Literal["auto", "rollout"],
        replays_own: bool,
    ) -> None:
        """`old_logprobs` is as in `TrainerConfig`.

        With `replays_own` the trained pass replays the trainer's own routing, which takes a pass before it.
        """
        self._pipeline = pipeline
        self._reference = reference
        self._replay = replay
        self._old_logprobs = old_logprobs
        self._replays_own = replays_own

    def fill(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with `old_logprobs` and `reference_logprobs` where they are needed."""
        return self._with_reference(self._with_old(batches, timed), timed)

    def _with_old(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        if self._replay is not None and self._replays_own:
            with timed("own_routing"), self._replay.recording():
                self._pipeline.logprobs(batches)
        if self._old_logprobs == "rollout":
            batches = [dataclasses.replace(b, old_logprobs=b.rollout_logprobs) for b in batches]
        return batches

    def _with_reference(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        if self._reference is None:
            return batches
        with timed("ref_logprobs"), self._reference.in_place(), routed_freely(self._replay):
            found = self._pipeline.logprobs(batches)
        if not found:  # before the last stage
            return batches
        return [dataclasses.replace(b, reference_logprobs=p) for b, p in zip(batches, found, strict=True)]
