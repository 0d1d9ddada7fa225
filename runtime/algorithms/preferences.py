"""Losses of pairs of answers, of which one is preferred: pure functions of log-ratios, or of a reward model's scores.

The log-ratio of an answer is log p - log q, summed over its trained tokens, with the model in training p and the
reference q. That of a pair is the chosen answer's minus the rejected one's.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from verst.runtime.algorithms.stages import DpoStage


def pair_loss(log_ratio: Tensor, stage: DpoStage) -> tuple[Tensor, Tensor]:
    """The losses of pairs with these log-ratios [n], and their derivatives by the log-ratio, both without gradient.

    sigmoid, with h = beta * log_ratio and the label smoothing e: -(1 - e) log s(h) - e log s(-h), with the logistic
    function s (arXiv:2305.18290, eq. 7; with e, its section on conservative DPO at https://ericmitchell.ai/cdpo.pdf).
    ipo: (log_ratio - 1 / (2 beta))^2 (arXiv:2310.12036, eq. 17).
    """
    log_ratio = log_ratio.detach()
    if stage.loss == "ipo":
        off = log_ratio - 1 / (2 * stage.beta)
        return off.square(), 2 * off
    h, smoothing = stage.beta * log_ratio, stage.label_smoothing
    loss = -(1 - smoothing) * logsigmoid(h) - smoothing * logsigmoid(-h)
    return loss, stage.beta * (smoothing - (-h).sigmoid())


def score_loss(
    difference: Tensor, total: Tensor, margin: Tensor, center_coef: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of pairs whose two scores have this difference (chosen - rejected) and this sum, [n] each.

    -log s(difference - margin) + center_coef * total^2, with the logistic function s: the model of Bradley and Terry,
    with the margin of Llama 2 (arXiv:2307.09288, eq. 2) and the centring of arXiv:2312.09244. Returns also
    the derivatives by the difference and by the sum. All without gradient.
    """
    difference, total = difference.detach(), total.detach()
    h = difference - margin
    return -logsigmoid(h) + center_coef * total.square(), -(-h).sigmoid(), 2 * center_coef * total
