"""Scores a step's tokens before it trains on them: an ordered list of forward passes, each of which makes a signal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from verst.runtime.trainer.config import OldLogprobs
from verst.runtime.trainer.model.frozen_model import FrozenModel
from verst.runtime.trainer.replay.routing import RoutingReplay, routed_freely
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.forward import Pipeline
from verst.runtime.trainer.step.frozen_weights import FrozenWeights
from verst.runtime.trainer.step.logprobs import LogprobHead
from verst.runtime.trainer.step.old_policy import old_logprobs
from verst.runtime.trainer.step.phases import Phases
from verst.runtime.trainer.step.rank_hooks import RankHooks

# The signals of `PolicyScores`: the rows of the policy's head, in order.
POLICY_SCORES = ("policy_logprobs", "policy_entropy")


def _with_prediction(pipeline: Pipeline, batches: list[Batch], signal: str) -> list[Batch]:
    """Runs a forward pass. Returns the batches with what it predicts as a signal, on the last stage; elsewhere as they
    are."""
    found = pipeline.predict(batches)
    if not found:  # before the last stage
        return batches
    return [b.with_signal(signal, predicted) for b, predicted in zip(batches, found, strict=True)]


class OwnRouting:
    """A pass of the policy that records which experts it chooses; the trained pass replays them. Makes no signal."""

    def __init__(self, pipeline: Pipeline, replay: RoutingReplay) -> None:
        self._pipeline = pipeline
        self._replay = replay

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches as they are."""
        with timed("own_routing"), self._replay.recording():
            self._pipeline.predict(batches)
        return batches


class EngineAsOld:
    """The old policy is the engine's: "old_logprobs" are those that the samples bring. Takes no pass."""

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with the signal."""
        return [batch.with_signal("old_logprobs", batch.signals["rollout_logprobs"]) for batch in batches]


class PolicyScores:
    """The policy's log-probabilities and entropies before the step's first update, on the last stage: the signals of
    `POLICY_SCORES`, for a filter of the step's samples."""

    def __init__(self, pipeline: Pipeline, hooks: RankHooks) -> None:
        self._pipeline = pipeline
        self._hooks = hooks

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with the signals."""
        with timed("policy_logprobs"):
            self._hooks.before_logprobs(timed.version, "policy", self._pipeline.chunks)
            found = self._pipeline.outputs(batches)
        for row, name in enumerate(POLICY_SCORES if found else ()):
            batches = [b.with_signal(name, output[row]) for b, output in zip(batches, found, strict=True)]
        return batches


class PolicyAsOld:
    """The policy's log-probabilities before the step's first update make "old_logprobs", on the last stage.

    Only a step of several updates needs it, and a KL in the reward: in the first update they are those of the trained
    pass.
    """

    def __init__(self, pipeline: Pipeline, choice: OldLogprobs, hooks: RankHooks, *, scored: bool) -> None:
        """`scored`: a pass of `PolicyScores` comes before, so that there is none here."""
        self._pipeline = pipeline
        self._choice = choice
        self._hooks = hooks
        self._scored = scored

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with the signal."""
        if self._scored:
            found = [b.signals[POLICY_SCORES[0]] for b in batches if POLICY_SCORES[0] in b.signals]
        else:
            with timed("policy_logprobs"):
                self._hooks.before_logprobs(timed.version, "policy", self._pipeline.chunks)
                found = self._pipeline.predict(batches)
        if not found:  # before the last stage
            return batches
        return [
            b.with_signal("old_logprobs", old_logprobs(b, p, timed.version, self._choice))
            for b, p in zip(batches, found, strict=True)
        ]


class UnderFrozenWeights:
    """The log-probabilities under weights that the run keeps fixed: the signal "NAME_logprobs", on the last stage.

    A mixture of experts routes freely: the engine's experts are those of the policy.
    """

    def __init__(
        self, pipeline: Pipeline, weights: FrozenWeights, replay: RoutingReplay | None, hooks: RankHooks
    ) -> None:
        self._hooks = hooks
        self._pipeline = pipeline
        self._weights = weights
        self._replay = replay

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with the signal."""
        name = self._weights.name
        with timed(f"{name}_logprobs"), self._in_place():
            self._hooks.before_logprobs(timed.version, name, self._pipeline.chunks)
            return _with_prediction(self._pipeline, batches, f"{name}_logprobs")

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        with self._weights.in_place(), routed_freely(self._replay):
            yield


class UnderTeacher:
    """The log-probabilities under a model with an architecture of its own: "teacher_logprobs", on the last stage."""

    def __init__(self, model: FrozenModel, hooks: RankHooks) -> None:
        self._hooks = hooks
        self._pipeline = Pipeline(
            model.args,
            model.transformer_config,
            model.chunks,
            None,
            LogprobHead(model.args.vocab_size, with_entropy_grad=False),
            trains=False,
        )

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with the signal."""
        with timed("teacher_logprobs"):
            self._hooks.before_logprobs(timed.version, "teacher", self._pipeline.chunks)
            return _with_prediction(self._pipeline, batches, "teacher_logprobs")


class CriticValues:
    """The critic's value of each token: the signal "values", on the last stage.

    The critic's routers choose freely: the engine's experts are those of the policy.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __call__(self, batches: list[Batch], timed: Phases) -> list[Batch]:
        """Returns the batches with the signal."""
        with timed("critic_values"):
            return _with_prediction(self._pipeline, batches, "values")


ScoringPass = (
    OwnRouting | EngineAsOld | PolicyScores | PolicyAsOld | UnderFrozenWeights | UnderTeacher | CriticValues
)


def score(batches: list[Batch], passes: Sequence[ScoringPass], timed: Phases) -> list[Batch]:
    """Runs the passes one after another; each sees the signals of those before it."""
    for scoring_pass in passes:
        batches = scoring_pass(batches, timed)
    return batches
