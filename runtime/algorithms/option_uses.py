"""Refuses options of the recipe's `algorithm` section that nothing would use, and those that contradict each other.

A resolved recipe holds every option, so one counts as set if it has another value than its default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from verst.runtime.algorithms.covariance import needs_covariance

if TYPE_CHECKING:
    from verst.runtime.algorithms.config import AlgorithmConfig

_HERE = "verst.runtime.algorithms"
# An option of a single bundled advantage function; a user's own gets none.
_OF_ADVANTAGES = {"pass_k": "pass_at_k", "score_weights": "decoupled"}
# What each bundled loss and correction looks at. Another check tells of a bundled function that does not exist.
_OF_LOSSES: dict[str, tuple[str, ...]] = {
    "grpo": ("clip_low", "clip_high", "clip_ratio_c"),
    "gspo": ("clip_low", "clip_high", "clip_ratio_c"),
    "cispo": ("clip_low", "clip_high"),
    "gmpo": ("clip_low", "clip_high"),
    "dppo": ("clip_low", "clip_high"),
    "sapo": ("sapo_tau_positive", "sapo_tau_negative"),
    "clip_cov": ("clip_low", "clip_high", "cov_share", "cov_low", "cov_high"),
    "kl_cov": ("cov_share", "cov_kl_coef"),
    "reinforce": (),
}
_OF_CORRECTIONS: dict[str, tuple[str, ...]] = {
    name: ("correction_low", "correction_high")
    for name in ("token_truncated", "token_masked", "sequence_truncated", "sequence_masked", "geometric_truncated",
                 "geometric_masked")
} | {"negative_masked": ("correction_high",)}  # fmt: skip
# Options that only have a meaning beside another one.
_NEEDS = {
    "correction_low": "correction",
    "correction_high": "correction",
    "correction_veto": "correction",
    "imitation_reward": "imitation_coef",
    "kl": "kl_coef",
    "kl_importance": "kl_coef",
    "kl_in": "kl_coef",
    "kl_target": "kl_coef",
    "kl_horizon": "kl_target",
    "reference": "kl_coef",
}
# Advantages that the penalty of a KL in the reward would not reach, or that need rewards of 0 and above.
_WITHOUT_PENALTY = ("decoupled", "mean_normalised", "pass_at_k")
_NORMALISED_OVER_STEP = ("step_normalised", "step_normalised_baseline", "decoupled")


def refuse_options_without_use(config: AlgorithmConfig) -> None:
    """Raises ValueError for the first fault."""
    for name, of in _NEEDS.items():
        if _is_set(config, name) and not getattr(config, of):
            raise ValueError(f"{name} is {getattr(config, name)}, but has no effect without {of}")
    _check_advantage(config)
    _check_used_by(config, "loss", "losses", _OF_LOSSES)
    _check_used_by(config, "correction", "corrections", _OF_CORRECTIONS)
    if config.correction_low > config.correction_high:
        raise ValueError(
            f"correction_low is {config.correction_low:g}, above correction_high, which is {config.correction_high:g}"
        )
    _check_covariance(config)
    _check_critic(config)
    _check_kl(config)
    if config.logprob_filter is not None and config.own_average is not None:
        raise ValueError(
            f"logprob_filter is {config.logprob_filter}, but loss_average is the function {config.own_average}, which "
            "weighs all samples before the filter drops some: set loss_average to token, sample, episode or constant"
        )


def _check_advantage(config: AlgorithmConfig) -> None:
    bundled = _bundled(config.advantage, "advantages")
    for name, of in _OF_ADVANTAGES.items():
        if _is_set(config, name) and bundled != of:
            raise ValueError(
                f"{name} is {getattr(config, name)}, but only the advantage {of} uses it: leave it out"
            )
    if config.skip_zero_advantage and (config.kl_coef or config.entropy_coef):
        raise ValueError(
            "skip_zero_advantage is true, but kl_coef and entropy_coef train on samples with an advantage of zero: "
            "set both to 0"
        )
    if config.skip_zero_advantage and config.teacher is not None:
        raise ValueError(
            "skip_zero_advantage is true, but the teacher gives the tokens of such samples advantages of their own: "
            "leave it out"
        )
    if config.advantage_whiten and bundled in _NORMALISED_OVER_STEP:
        raise ValueError(
            f"advantage_whiten is true, but the advantage {bundled} is normalised over the step already: leave it out"
        )
    if bundled == "pass_at_k" and config.pass_k > config.samples_per_prompt:
        raise ValueError(
            f"pass_k is {config.pass_k}, above samples_per_prompt, which is {config.samples_per_prompt}: a group must "
            "have at least as many answers"
        )


def _check_covariance(config: AlgorithmConfig) -> None:
    if not needs_covariance(config):
        return
    name = config.loss.rpartition(":")[2]
    if config.skip_zero_advantage:
        raise ValueError(
            f"skip_zero_advantage is true, but the loss {name} compares the tokens of all samples: set it to false"
        )
    if config.cov_low >= config.cov_high:
        raise ValueError(
            f"cov_low is {config.cov_low:g}, not below cov_high, which is {config.cov_high:g}: no token is between them"
        )
    if name == "kl_cov" and config.updates_per_step == 1 and config.staleness == 0:
        raise ValueError(
            "the loss is kl_cov, whose penalty is 0 in a step's first update, and a step takes one: set mini_batches "
            "or epochs above 1, or choose another loss"
        )


def _check_critic(config: AlgorithmConfig) -> None:
    bundled = _bundled(config.advantage, "advantages")
    if config.critic is None:
        if bundled == "gae":
            raise ValueError(
                "advantage is gae, which needs the values of a critic: add `critic: {}`, or choose another advantage"
            )
        return
    if bundled not in (None, "gae"):
        raise ValueError(
            f"critic is given, but the advantage {bundled} uses no values: set advantage to {_HERE}.advantages:gae, "
            "or leave critic out"
        )
    if config.skip_zero_advantage:
        raise ValueError(
            "skip_zero_advantage is true, but with a critic the advantages are not known before the step: set it to "
            "false"
        )
    if config.critic.warmup_steps >= config.steps:
        raise ValueError(
            f"critic.warmup_steps is {config.critic.warmup_steps}, and there are {config.steps} steps: the policy "
            "would never be trained"
        )


def _check_kl(config: AlgorithmConfig) -> None:
    samples = config.prompts_per_step * config.samples_per_prompt
    if config.kl_target is not None and samples >= 5 * config.kl_horizon:
        raise ValueError(
            f"kl_horizon is {config.kl_horizon}, a fifth of a step's {samples} samples or less: kl_coef would fall to "
            "0 or below it in one step"
        )
    bundled = _bundled(config.advantage, "advantages")
    if config.kl_in == "reward":
        if config.kl_importance:
            raise ValueError(
                "kl_importance is true, but weighs the divergence in the loss: set kl_in to loss"
            )
        if bundled in _WITHOUT_PENALTY:
            raise ValueError(
                f"kl_in is reward, which does not fit the advantage {bundled}: it looks at parts of the reward, or "
                "needs rewards that no penalty changes; set kl_in to loss"
            )
    elif config.kl_coef and _bundled(config.kl, "divergences") == "k1" and not config.kl_importance:
        raise ValueError(
            "kl is k1, whose gradient is zero in expectation: set kl_importance to true, or use k2 or k3"
        )


def _check_used_by(
    config: AlgorithmConfig, key: str, module: str, options: dict[str, tuple[str, ...]]
) -> None:
    """Refuses options of bundled functions that the bundled function at `key` does not look at."""
    name = _bundled(getattr(config, key), module)
    if name is None:
        return
    known = sorted({option for used in options.values() for option in used})
    for option in known:
        if _is_set(config, option) and option not in options.get(name, known):
            of = ", ".join(other for other, used in options.items() if option in used)
            raise ValueError(
                f"{option} is {getattr(config, option)}, but the {key} {name} does not use it: leave it out; it is "
                f"for {of}"
            )


def _bundled(path: str | None, module: str) -> str | None:
    """The name of a function of this package's module; None for a user's own, or for none."""
    home, _, name = (path or "").partition(":")
    return name if home == f"{_HERE}.{module}" else None


def _is_set(config: AlgorithmConfig, name: str) -> bool:
    return bool(getattr(config, name) != type(config).model_fields[name].default)
