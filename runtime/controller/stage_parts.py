"""What a step on rows of a stage trains: a pure function of group metadata."""

from __future__ import annotations

from collections.abc import Sequence

from verst.runtime.algorithms.stages import OfflineStage, RewardModelStage, SftStage
from verst.runtime.controller.batch_plan import Part
from verst.runtime.messages.sample import GroupMeta


def parts_of_stage(metas: Sequence[GroupMeta], stage: OfflineStage) -> list[Part]:
    """The terms of a step on these rows. Of a pair the first sample is the chosen one."""
    if isinstance(stage, SftStage):
        return [Part("sft", metas, [[1.0] * len(meta.rewards) for meta in metas], stage.loss_average)]
    signs = [[1.0, -1.0]] * len(metas)
    if isinstance(stage, RewardModelStage):
        return [Part("reward_model", metas, signs, "pair")]
    parts = [Part("dpo", metas, signs, "pair")]
    if stage.sft_coef:
        chosen = [[True, False]] * len(metas)
        parts.append(Part("sft", metas, signs, "sample", coefficient=stage.sft_coef, takes_part=chosen))
    return parts
