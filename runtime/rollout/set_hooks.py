"""The sampling and the functions of each evaluation set; what a set does not name is the recipe's `rollout`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verst.runtime.data.config import EvalConfig
from verst.runtime.hooks.hook import Hook
from verst.runtime.rewards import RewardFunction
from verst.runtime.rewards.config import RewardPart
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import EngineError

_EXTRACT_S = 60.0


@dataclass(frozen=True)
class SetHooks:
    """What answers are made and scored with: of training, or of one evaluation set."""

    sampling: SamplingConfig
    generate: Hook
    reward: RewardFunction | None  # None: the generate function scores itself
    extract: Hook | None = None


def generate_hook(config: RolloutConfig, path: str) -> Hook:
    """The generate function at `path`. Raises HookError if it cannot be loaded."""
    return Hook(
        "generate function", path, timeout_s=config.generate_timeout_s, in_thread=False, passes=EngineError
    )


def reward_function(config: RolloutConfig, reward: str | list[RewardPart]) -> RewardFunction:
    """A reward, whose processes are not started yet."""
    return RewardFunction(
        reward,
        config.reward_timeout_s,
        processes=config.reward_processes,
        memory_gib=config.reward_memory_gib,
        failure=config.reward_failure,
        retries=config.reward_retries,
    )


def hooks_of_sets(
    config: RolloutConfig, sets: dict[str, EvalConfig], training: SetHooks
) -> dict[str, SetHooks]:
    """The hooks of each set, by its name. Sets that name the same reward share its processes."""
    rewards: dict[str, RewardFunction | None] = {}
    if isinstance(config.reward, str):
        rewards[config.reward] = training.reward
    found = {}
    for name, each in sets.items():
        if each.reward is not None and each.reward not in rewards:
            rewards[each.reward] = reward_function(config, each.reward)
        found[name] = SetHooks(
            sampling=eval_sampling(config.sampling, each),
            generate=generate_hook(config, each.generate) if each.generate else training.generate,
            reward=training.reward if each.reward is None else rewards[each.reward],
            extract=Hook("extract function", each.extract, timeout_s=_EXTRACT_S) if each.extract else None,
        )
    return found


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
