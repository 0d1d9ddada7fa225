"""Advantages compare episodes, whatever number of samples they are trained as."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.runtime.controller.reporting.test_numbers import group
from tests.runtime.controller.test_training import Trainers, training
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.sample import GroupMeta


def in_episodes(id: int, rewards: list[float], episodes: list[int]) -> GroupMeta:
    return msgspec.structs.replace(
        group(id, rewards), episodes=episodes, scores={"right": [r + 1 for r in rewards]}
    )


@pytest.mark.parametrize(
    "name", ["group_centred", "group_normalised", "leave_one_out", "step_normalised_baseline"]
)
def test_advantages_compare_episodes_and_each_sample_gets_its_episodes(name: str) -> None:
    """An episode of five samples counts once: the others' advantages are those of a group with it as one sample."""
    trainers, alone = Trainers(), Trainers()
    hook = Hook("advantage function", f"verst.runtime.algorithms.advantages:{name}", timeout_s=5)
    several = [in_episodes(0, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], [0, 1, 1, 1, 1, 1, 2])]
    single = msgspec.structs.replace(group(0, [1.0, 0.0, 0.5]), trained_tokens=[4, 20, 4])
    for to, groups in ((trainers, several), (alone, [single])):
        made = training(to, [], skip_zero_advantage=False)
        made._advantage = hook
        asyncio.run(made.train(20, groups))

    def advantages(of: Trainers) -> list[float]:
        refs = {r.index: r.advantage for m in of.plans[0].microbatches[0] for r in m.samples}
        return [refs[index] for index in range(len(refs))]

    first, second, third = advantages(alone)
    assert first > 0 > second
    assert advantages(trainers) == [first, *[second] * 5, third]


def test_a_group_of_episodes_has_one_entry_for_each() -> None:
    meta = msgspec.structs.replace(
        in_episodes(3, [0.5, 1.0, 0.5, 0.0], [4, 2, 4, 7]),
        lengths=[10, 20, 30, 40],
        trained_tokens=[1, 2, 3, 4],
        finish=["length", "length", "stop", "stop"],
    )
    one = meta.by_episode()
    assert (one.rewards, one.lengths, one.trained_tokens) == ([0.5, 1.0, 0.0], [40, 20, 40], [4, 2, 4])
    assert (one.finish, one.episodes, one.scores) == (
        ["stop", "length", "stop"],
        [4, 2, 7],
        {"right": [1.5, 2.0, 1.0]},
    )
    assert meta.for_samples([0.1, 0.2, 0.3]) == [0.1, 0.2, 0.1, 0.3]
    plain = group(3, [0.5, 1.0])
    assert plain.by_episode() is plain
    assert plain.for_samples([1.0, 2.0]) == [1.0, 2.0]
