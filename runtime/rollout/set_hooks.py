"""The sampling and the functions of each evaluation set; what a set does not name is the recipe's `rollout`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verst.runtime.data.config import EvalConfig
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.pool import HookPool
from verst.runtime.rewards.config import RewardPart
from verst.runtime.rewards.failures import Failures
from verst.runtime.rewards.group import GroupReward
from verst.runtime.rewards.score import RewardFunction, pool_size
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import EngineError

_EXTRACT_S = 60.0
# A reward, whose processes are not started yet, by its path or parts.
RewardOf = Callable[[str | list[RewardPart]], RewardFunction]


@dataclass(frozen=True)
class SetHooks:
    """What answers are made and scored with: of training, or of one evaluation set."""

    sampling: SamplingConfig
    generate: Hook
    reward: RewardFunction | None  # None: the generate function scores itself
    extract: Hook | None = None
    group_reward: GroupReward | None = None  # after the reward, if there is one


def generate_hook(config: RolloutConfig, path: str) -> Hook:
    """The generate function at `path`. Raises HookError if it cannot be loaded."""
    return Hook(
        "generate function", path, timeout_s=config.generate_timeout_s, in_thread=False, passes=EngineError
    )


def rewards_of(config: RolloutConfig) -> RewardOf:
    """Makes the rewards that a recipe names; places that name the same one share its processes."""
    made: dict[str, RewardFunction] = {}

    def reward_of(reward: str | list[RewardPart]) -> RewardFunction:
        key = str(reward)
        if key not in made:
            made[key] = RewardFunction(
                reward,
                config.reward_timeout_s,
                processes=config.reward_processes,
                memory_gib=config.reward_memory_gib,
                failure=config.reward_failure,
                retries=config.reward_retries,
            )
        return made[key]

    return reward_of


def group_reward_of(config: RolloutConfig) -> GroupReward | None:
    """The recipe's group reward, whose processes are not started yet."""
    if config.group_reward is None:
        return None
    count, memory = pool_size(config.reward_processes, config.reward_memory_gib)
    pool = HookPool(
        "group reward",
        config.group_reward,
        processes=count,
        timeout_s=config.reward_timeout_s,
        memory_bytes=memory,
        keywords=config.group_reward_arguments,
    )
    return GroupReward(pool, Failures(config.reward_failure, config.reward_retries))


def hooks_of_sets(
    config: RolloutConfig, sets: dict[str, EvalConfig], training: SetHooks, reward_of: RewardOf
) -> dict[str, SetHooks]:
    """The hooks of each set, by its name."""
    return {
        name: SetHooks(
            sampling=eval_sampling(config.sampling, each),
            generate=generate_hook(config, each.generate) if each.generate else training.generate,
            reward=training.reward if each.reward is None else reward_of(each.reward),
            # It may shape rewards for training, which an evaluation must not measure.
            group_reward=training.group_reward if each.reward is None and training.reward is None else None,
            extract=Hook("extract function", each.extract, timeout_s=_EXTRACT_S) if each.extract else None,
        )
        for name, each in sets.items()
    }


def eval_sampling(sampling: SamplingConfig, each: EvalConfig) -> SamplingConfig:
    """How a set's answers are sampled; `sampling` is that of training."""
    own: dict[str, Any] = {name: getattr(each, name) for name in ("temperature", "top_p", "top_k", "min_p")}
    own |= {name: value for name in ("max_new_tokens", "stop") if (value := getattr(each, name)) is not None}
    return sampling.model_copy(update=own)


def final_answer(value: object) -> str | None:
    """Checks what `extract` returned. Raises ValueError if it is neither a text nor None."""
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"returned {type(value).__name__}, must be a str or None")
