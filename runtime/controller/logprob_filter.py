"""Asks the recipe's function which samples of a step are trained on, once the trainer's ranks have scored them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from verst.runtime.controller.batch_plan import Part
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.scored_step import ScoredSample, ScoredStep
from verst.runtime.hooks.values import decisions_of
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import SampleScore

_TIMEOUT_S = 60.0  # for the samples of one step


@dataclass(frozen=True)
class Filtered:
    """Which samples the filter dropped, and how many for which reason."""

    dropped: set[tuple[int, int]]  # (group, index)
    counts: dict[str, int]  # by reason, and "all"

    def without_dropped(self, part: Part) -> Part:
        """The part of which the dropped samples take no part."""
        flags = part.takes_part or [[True] * len(group.rewards) for group in part.groups]
        takes_part = [
            [flag and (group.id, index) not in self.dropped for index, flag in enumerate(row)]
            for group, row in zip(part.groups, flags, strict=True)
        ]
        return dataclasses.replace(part, takes_part=takes_part)


class LogprobFilter:
    """The function of `algorithm.logprob_filter`. Raises HookError if it cannot be loaded."""

    def __init__(self, path: str) -> None:
        self._hook = Hook("log-probability filter", path, timeout_s=_TIMEOUT_S)

    async def __call__(self, step: int, policy: Part, scores: Sequence[SampleScore]) -> Filtered:
        """`policy` has the step's groups with their advantages, and `scores` are the trainer's.

        Raises HookError if the function fails, or drops every sample: nothing would be left to train on.
        """
        place = f"step {step}"
        samples = scored_samples(step, policy, scores)
        asked = ScoredStep(step=step, samples=tuple(samples))
        decisions = await self._hook(place, asked, check=decisions_of(len(samples)))
        pairs = list(zip(samples, decisions, strict=True))
        dropped = {(sample.group, sample.index) for sample, decision in pairs if not decision.kept}
        reasons = Counter(decision.reason for _, decision in pairs if not decision.kept)
        if samples and len(dropped) == len(samples):
            told = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
            raise self._hook.fault(
                place,
                f"dropped all {len(samples)} samples of the step ({told}), so that there is nothing to train on; keep "
                "some of them, such as the best ones",
            )
        return Filtered(dropped, {"all": len(dropped), **reasons})


def scored_samples(step: int, policy: Part, scores: Sequence[SampleScore]) -> list[ScoredSample]:
    """The samples that have a trained token and were scored, in the order of their groups.

    A sample that the plan has left out (`algorithm.skip_zero_advantage`) was not scored.
    """
    found = {(score.group, score.index): score for score in scores}
    return [
        _sample(step, group, index, advantage, found[group.id, index])
        for group, advantages in zip(policy.groups, policy.advantages, strict=True)
        for index, advantage in enumerate(advantages)
        if group.trained_tokens[index] and (group.id, index) in found
    ]


def _sample(step: int, group: GroupMeta, index: int, advantage: float, score: SampleScore) -> ScoredSample:
    parts = {name: values[index] for name, values in group.scores.items()}
    return ScoredSample(
        group=group.id,
        index=index,
        episode=group.episodes[index] if group.episodes else index,
        source=group.source,
        reward=group.rewards[index],
        scores={name: value for name, value in parts.items() if not math.isnan(value)},
        advantage=advantage,
        finish=group.finish[index],
        length=group.lengths[index],
        trained_tokens=group.trained_tokens[index],
        # A step has the number of the version that it makes. A group of an abandoned life may bear a later number.
        staleness=max(0, step - 1 - group.oldest_version),
        logprobs=score.logprobs,
        rollout_logprobs=score.rollout_logprobs,
        difference=score.difference,
        entropy=score.entropy,
        reference_logprobs=score.reference_logprobs,
        teacher_logprobs=score.teacher_logprobs,
    )
