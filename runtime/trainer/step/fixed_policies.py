"""Computes log-probabilities under the policies that a step holds fixed: the old policy and the reference."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Literal

from torch import Tensor

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
        old_logprobs: Literal["auto", "recompute", "rollout"],
        replays_own: bool,
    ) -> None:
        """`old_logprobs` is as in `TrainerConfig`.

        With `replays_own` the trained pass replays the routing of the pass for the old policy.
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
        recompute = self._old_logprobs == "recompute"
        if recompute or self._replays_own:
            with timed("old_logprobs"), self._recording():
                found = self._pipeline.logprobs(batches)
            batches = _with(batches, "old_logprobs", found if recompute else [])
        if self._old_logprobs == "rollout":
            batches = [dataclasses.replace(b, old_logprobs=b.rollout_logprobs) for b in batches]
        return batches

    def _with_reference(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        if self._reference is None:
            return batches
        with timed("ref_logprobs"), self._reference.in_place(), routed_freely(self._replay):
            found = self._pipeline.logprobs(batches)
        return _with(batches, "reference_logprobs", found)

    def _recording(self) -> contextlib.AbstractContextManager[None]:
        if self._replay is not None and self._replays_own:
            return self._replay.recording()
        return contextlib.nullcontext()


def _with(
    batches: list[Batch], name: Literal["old_logprobs", "reference_logprobs"], logprobs: list[Tensor]
) -> list[Batch]:
    """Returns the batches with a field filled in.

    Stages before the last have no values and return the batches unchanged.
    """
    if not logprobs:
        return batches
    filled: list[dict[str, Any]] = [{name: p} for p in logprobs]
    return [dataclasses.replace(b, **f) for b, f in zip(batches, filled, strict=True)]
