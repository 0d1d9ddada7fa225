"""Losses of pairs of answers, of which one is preferred: pure functions of log-ratios.

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
