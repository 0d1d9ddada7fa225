"""Per-token policy losses: pure functions of the trained tokens of a micro-batch.

The recipe chooses one by dotted path (`algorithm.loss`). It returns one loss per token, and must not normalise: the
trainer multiplies each loss by the token's weight and adds them up (`averages.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from verst.runtime.algorithms.tokens import TokenBatch, TokenLoss

# Log-ratios are clamped to this before exp. fp32 overflows at 88.7, and an infinite ratio makes the gradient NaN
# even where clipping sets it to zero (0 * inf).
LOG_RATIO_BOUND = 20.0


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The policy ratio exp(logprobs - old_logprobs), with the log-ratio clamped to +-20.

    Beyond that the ratio is constant, so it has no gradient.
    """
    return bounded_exp(logprobs - old_logprobs)


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp of a log-ratio that is clamped to +-20."""
    return torch.exp(log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def grpo(batch: TokenBatch) -> TokenLoss:
    """PPO's clipped surrogate with separate bounds: -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    The surrogate is eq. 7 of arXiv:1707.06347; the separate bounds are DAPO's (arXiv:2503.14476, eq. 10). With
    `clip_ratio_c` a token with A < 0 loses no more than -c * A: the dual clip (arXiv:1912.09729, eq. 5).
    """
    return _clipped(batch, batch.logprobs - batch.old_logprobs)


def gspo(batch: TokenBatch) -> TokenLoss:
    """GSPO: one ratio per sample, the geometric mean of its tokens' (arXiv:2507.18071, eqs. 5, 7, 13 and 14).

    It is clipped as in `grpo`; the paper's bounds are a few 1e-4. With `loss_average: sample` the loss is the paper's:
    each token has the sample's ratio, and the gradient of its own log-probability.
    """
    log_ratio = batch.sequences.mean(batch.logprobs - batch.old_logprobs)
    return _clipped(batch, log_ratio + batch.logprobs - batch.logprobs.detach())


def cispo(batch: TokenBatch) -> TokenLoss:
    """CISPO: -clip(ratio, 1 - low, 1 + high) * A * log p (arXiv:2506.13585, eqs. 4 and 5).

    The clipped ratio has no gradient, so every token keeps that of its log-probability. The paper bounds the ratio from
    above only: set clip_low to 1.
    """
    ratio = policy_ratio(batch.logprobs.detach(), batch.old_logprobs)
    bounded = ratio.clamp(1 - batch.config.clip_low, 1 + batch.config.clip_high)
    return TokenLoss(
        -bounded * batch.advantages * batch.logprobs, {"clip_fraction": (bounded != ratio).float()}
    )


def sapo(batch: TokenBatch) -> TokenLoss:
    """SAPO: -gate(ratio) * A, with the soft gate sigmoid(tau * (ratio - 1)) * 4 / tau instead of a clip
    (arXiv:2511.20347, eqs. 5 and 6).

    At a ratio of 1 its gradient is that of the policy gradient; it fades as the ratio moves away, at the rate
    `sapo_tau_positive` for positive advantages and `sapo_tau_negative` for others.
    """
    ratio = policy_ratio(batch.logprobs, batch.old_logprobs)
    config = batch.config
    tau = torch.full_like(ratio, config.sapo_tau_negative)
    tau = tau.masked_fill(batch.advantages > 0, config.sapo_tau_positive)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return TokenLoss(-gate * batch.advantages)


def gmpo(batch: TokenBatch) -> TokenLoss:
    """GMPO: -ratio * A with one ratio per sample, the geometric mean of its tokens' clipped ratios (arXiv:2507.20673).

    The clip acts on each token's log-ratio, which stays within -clip_low and clip_high; the paper takes 0.4 for both.
    As in `grpo`, it acts only where it lowers the objective. Use it with `loss_average: sample`.
    """
    sign = batch.advantages.sign()
    log_ratio = batch.logprobs - batch.old_logprobs
    bounded = log_ratio.clamp(-batch.config.clip_low, batch.config.clip_high)
    kept = sign * torch.minimum(sign * log_ratio, sign * bounded)
    ratio = bounded_exp(batch.sequences.mean(kept) + kept - kept.detach())
    clipped = sign * bounded < sign * log_ratio
    return TokenLoss(-ratio * batch.advantages, {"clip_fraction": clipped.float()})


def dppo(batch: TokenBatch) -> TokenLoss:
    """DPPO with the binary total variation: -ratio * A, without gradient where the token's probability has left the
    old one by more than the bound, in the direction of its advantage (arXiv:2602.04879).

    The bounds are on p - p_old: `clip_high` where A > 0, `-clip_low` elsewhere. A token of low probability may so
    change its ratio much, and one of high probability only a little.
    """
    ratio = policy_ratio(batch.logprobs, batch.old_logprobs)
    moved = (batch.logprobs.exp() - batch.old_logprobs.exp()).detach()
    up = batch.advantages > 0
    left = torch.where(up, moved > batch.config.clip_high, moved < -batch.config.clip_low)
    kept = torch.where(left, ratio.detach(), ratio)
    return TokenLoss(-kept * batch.advantages, {"clip_fraction": left.float()})


def clip_cov(batch: TokenBatch) -> TokenLoss:
    """Clip-Cov: `grpo` without the gradient of a few tokens, drawn at random among those whose covariance of
    log-probability and advantage is within `cov_low` and `cov_high` (arXiv:2505.22617, section 4.2).

    They are `cov_share` of the update's tokens, chosen before it (`covariance.py`). The paper's code sets clip_low and
    clip_high to 1.
    """
    found = _clipped(batch, batch.logprobs - batch.old_logprobs)
    chosen = batch.signals["covariance_chosen"] > 0
    loss = torch.where(chosen, found.loss.detach(), found.loss)
    return TokenLoss(loss, {**found.metrics, **_of_covariance(batch)})


def kl_cov(batch: TokenBatch) -> TokenLoss:
    """KL-Cov: -ratio * A, plus `cov_kl_coef` * |log ratio| for the tokens with the highest covariance of
    log-probability and advantage, which holds them at the old policy (arXiv:2505.22617, section 4.2).

    They are `cov_share` of the update's tokens, chosen before it (`covariance.py`). There is no clip. |log ratio| is
    the paper's estimate of KL(old policy || policy). In a step's first update it is 0, and so is its gradient.
    """
    log_ratio = batch.logprobs - batch.old_logprobs
    held = batch.config.cov_kl_coef * batch.signals["covariance_chosen"] * log_ratio.abs()
    return TokenLoss(held - bounded_exp(log_ratio) * batch.advantages, _of_covariance(batch))


def reinforce(batch: TokenBatch) -> TokenLoss:
    """The plain policy gradient, without a ratio: -A * log p."""
    return TokenLoss(-batch.advantages * batch.logprobs)


def sft(logprobs: Tensor) -> Tensor:
    """The negative log-likelihood of the demonstration's tokens: -log p."""
    return -logprobs


def clipped_value(values: Tensor, old: Tensor, targets: Tensor, clip: float | None) -> TokenLoss:
    """Half the squared error of a critic's values, fp32 [n] each: (V - R)^2 / 2.

    With `clip` it is the larger of that and the same of a value that is held within +-clip of the `old` one, which is
    that before the step (arXiv:2005.12729, section 3). `values` have gradients.
    """
    free = (values - targets).square()
    if clip is None:
        return TokenLoss(free / 2, {})
    moved = values - old
    # Within the bound the value itself: old + (value - old) may differ from it by rounding.
    held = torch.where(moved.abs() > clip, (old + moved.clamp(-clip, clip) - targets).square(), free)
    return TokenLoss(torch.maximum(free, held) / 2, {"value_clip_fraction": (held > free).float()})


def _of_covariance(batch: TokenBatch) -> dict[str, Tensor]:
    return {name: batch.signals[name] for name in ("covariance", "covariance_chosen")}


def _clipped(batch: TokenBatch, log_ratio: Tensor) -> TokenLoss:
    """The clipped surrogate of a log-ratio [n], which has gradients."""
    advantages, config = batch.advantages, batch.config
    ratio = bounded_exp(log_ratio)
    free = ratio * advantages
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * advantages
    surrogate = torch.minimum(free, bounded)
    # A ratio that is held at +-20 has no gradient either. Below the bounds above this matters for A < 0 only.
    held = log_ratio.detach() > LOG_RATIO_BOUND
    clipped = (bounded < free) | (held & (advantages < 0))
    if config.clip_ratio_c is None:
        return TokenLoss(-surrogate, {"clip_fraction": clipped.float()})
    floor = config.clip_ratio_c * advantages
    dual = (advantages < 0) & (surrogate < floor)
    return TokenLoss(
        -torch.where(dual, floor, surrogate),
        {"clip_fraction": (clipped | dual).float(), "dual_clip_fraction": dual.float()},
    )
