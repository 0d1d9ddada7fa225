"""Takes the KL from the reference off the rewards of a step's samples: a pure function."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import SampleScore


@dataclass(frozen=True)
class Penalised:
    """The groups with rewards less their penalties, and the mean of what an episode's reward lost."""

    groups: list[GroupMeta]
    mean: float


def penalised(groups: Sequence[GroupMeta], scores: Sequence[SampleScore]) -> Penalised:
    """Subtracts the penalties of an episode's samples from its reward; one without a trained token may have none.

    Raises ValueError for a sample that the trainer should have scored and did not.
    """
    found = {(score.group, score.index): score.penalty for score in scores}
    new = []
    for group in groups:
        # By episode, whose samples have its reward in common.
        taken: defaultdict[int, float] = defaultdict(float)
        numbers = group.episodes or range(len(group.rewards))
        for index, (trained, episode) in enumerate(zip(group.trained_tokens, numbers, strict=True)):
            if trained and (group.id, index) not in found:
                raise ValueError(f"the trainer did not score sample {index} of group {group.id}")
            taken[episode] += found.get((group.id, index), 0.0)
        rewards = [reward - taken[n] for reward, n in zip(group.rewards, numbers, strict=True)]
        new.append(msgspec.structs.replace(group, rewards=rewards))
    return Penalised(new, sum(found.values()) / sum(len(group.first_of_episodes) for group in groups))
