"""Which answers of a step the policy also imitates: a pure function of group metadata."""

from __future__ import annotations

from collections.abc import Sequence

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import Part
from verst.runtime.messages.sample import GroupMeta


def good_answers(
    groups: Sequence[GroupMeta], advantages: Sequence[Sequence[float]], algorithm: AlgorithmConfig
) -> list[Part]:
    """The part of the step that imitates answers with a reward of at least `imitation_reward`; none if there are none.

    Its term is mu / T times the sum of -log p over their T tokens (VAPO, arXiv:2504.05118): the mean over tokens,
    whatever `loss_average` is.
    """
    if not algorithm.imitation_coef:
        return []
    good = [[reward >= algorithm.imitation_reward for reward in group.rewards] for group in groups]
    if not any(
        n and flag
        for g, row in zip(groups, good, strict=True)
        for n, flag in zip(g.trained_tokens, row, strict=True)
    ):
        return []
    return [Part("sft", groups, advantages, "token", coefficient=algorithm.imitation_coef, takes_part=good)]
