"""Clip-Cov and KL-Cov against plain float64 references of arXiv:2505.22617, and the choice of tokens behind them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.algorithms.test_formulas import LENGTHS, OPTIONS, Ragged, settings, weights
from tests.runtime.algorithms.token_batches import config
from verst.runtime.algorithms import losses
from verst.runtime.algorithms.covariance import Candidates, covariances, draws

HOME = "verst.runtime.algorithms.losses:"
ROWS = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
PLACES = np.stack([ROWS, np.concatenate([np.arange(n) for n in LENGTHS])], 1)


def covariances_of(data: Ragged) -> list[float]:
    """Token by token, in plain Python."""
    logp = [x for sample in data.old for x in sample]
    a = [data.advantages[row] for row in ROWS]
    mean_p, mean_a = sum(logp) / len(logp), sum(a) / len(a)
    return [(p - mean_p) * (b - mean_a) for p, b in zip(logp, a, strict=True)]


def chosen_by(data: Ragged, name: str, key: tuple[int, ...] = (0,), **options: Any) -> np.ndarray:
    """The real choice, bool [n]."""
    logp, a = np.concatenate(data.old), np.array(data.advantages)[ROWS]
    found = covariances(logp, a, logp.mean(), a.mean())
    drawn = draws(key, PLACES)
    made = settings(loss=HOME + name, **options)
    best = Candidates.of(made, found, drawn).first(int(made.cov_share * len(logp)))
    return np.isin(drawn, best.draws)


def expected(data: Ragged, name: str, chosen: np.ndarray, average: str) -> tuple[float, np.ndarray]:
    leaf = torch.tensor(np.concatenate(data.logprobs)).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i, weight in enumerate(weights(average)):
        ratio, a = (leaf[i] - float(np.concatenate(data.old)[i])).exp(), data.advantages[ROWS[i]]
        if name == "clip_cov":
            bounded = ratio.clamp(1 - OPTIONS["clip_low"], 1 + OPTIONS["clip_high"])
            loss = -torch.minimum(ratio * a, bounded * a)
            loss = loss.detach() if chosen[i] else loss
        else:
            loss = -ratio * a + (0.7 * ratio.log().abs() if chosen[i] else 0.0)
        total = total + weight * loss
    total.backward()
    assert leaf.grad is not None
    return total.item(), leaf.grad.numpy()


@pytest.mark.parametrize("average", ["token", "sample", "constant"])
@pytest.mark.parametrize("name", ["clip_cov", "kl_cov"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_are_those_of_the_formula(name: str, average: str, seed: int) -> None:
    data = Ragged.random(seed)
    options: dict[str, Any] = {
        "cov_share": 0.2, "cov_low": -0.5, "cov_high": 2.0, "cov_kl_coef": 0.7, "clip_ratio_c": None
    }  # fmt: skip
    chosen = chosen_by(data, name, **options)
    by_hand = np.array(covariances_of(data))
    assert chosen.sum() == 3  # a fifth of 18 tokens, rounded down
    if name == "kl_cov":
        assert set(np.flatnonzero(chosen)) == set(np.argsort(by_hand)[-3:])
    else:
        assert ((by_hand > -0.5) & (by_hand < 2.0))[chosen].all()
    loss, gradient = expected(data, name, chosen, average)
    batch, leaf = data.tokens(loss=HOME + name, **options)
    marks = torch.tensor(chosen).double()
    batch = dataclasses.replace(
        batch, signals={**batch.signals, "covariance": torch.tensor(by_hand), "covariance_chosen": marks}
    )
    found = getattr(losses, name)(batch)
    total = (weights(average) * found.loss).sum()
    total.backward()
    assert total.item() == pytest.approx(loss, rel=1e-12)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-10, atol=1e-14)
    assert found.metrics["covariance_chosen"].sum() == 3
    marks.zero_()
    plain = getattr(losses, name)(batch).loss
    differs = name == "kl_cov"  # a detached loss has its value
    assert (abs((weights(average) * plain).sum().item() - loss) > 1e-3) == differs


def test_the_choice_is_the_same_in_every_order_and_another_with_every_key() -> None:
    """Of candidates with equal scores each is chosen as often as any other."""
    data = Ragged.random(0)
    order = np.random.default_rng(1).permutation(len(ROWS))
    assert (draws((5, 2), PLACES)[order] == draws((5, 2), PLACES[order])).all()
    options: dict[str, Any] = {"cov_share": 0.23, "cov_low": -100.0, "cov_high": 100.0}
    picks = np.array([chosen_by(data, "clip_cov", key=(1234, step), **options) for step in range(2000)])
    assert (picks.sum(1) == 4).all()
    # 2000 draws of probability 2/9: a deviation of 0.0093, of which the bound is 4.5.
    assert np.abs(picks.mean(0) - 4 / 18).max() < 4.5 * 0.0093
    assert len({tuple(row) for row in picks}) > 1000  # of 3060 possible ones
    assert len(set(draws((1,), np.stack([np.arange(100_000)] * 2, 1)).tolist())) == 100_000


def test_fewer_tokens_within_the_bounds_than_asked_for_are_all_chosen_and_none_outside() -> None:
    data = Ragged.random(3)
    by_hand = np.array(covariances_of(data))
    low, high = np.sort(by_hand)[[8, 11]]  # the bounds are outside
    chosen = chosen_by(data, "clip_cov", cov_share=0.9, cov_low=low + 1e-9, cov_high=high - 1e-9)
    assert set(np.flatnonzero(chosen)) == set(np.argsort(by_hand)[9:11])
    assert not chosen_by(data, "clip_cov", cov_share=0.05, cov_low=-9.0, cov_high=9.0).any()  # 0.9 tokens


def test_equal_covariances_are_in_the_order_of_their_draws() -> None:
    drawn = draws((0,), PLACES)
    best = Candidates(np.repeat([2.0, 1.0, 3.0], 6), drawn).first(8)
    assert best.draws.tolist() == [*sorted(drawn[12:]), *sorted(drawn[:6])[:2]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss_average": "tokens"}, "must be token, sample, episode, constant, or the dotted path"),
        ({"cov_share": 0.1}, "the loss grpo does not use it: leave it out; it is for clip_cov, kl_cov"),
        ({"loss": HOME + "clip_cov", "cov_kl_coef": 2.0}, "it is for kl_cov"),
        ({"loss": HOME + "clip_cov", "clip_ratio_c": 3.0}, "it is for grpo, gspo"),
        ({"loss": HOME + "kl_cov", "mini_batches": 2, "clip_low": 0.1}, "the loss kl_cov does not use it"),
        ({"loss": HOME + "clip_cov", "cov_low": 6.0}, "cov_low is 6, not below cov_high, which is 5"),
        ({"loss": HOME + "clip_cov", "skip_zero_advantage": True}, "compares the tokens of all samples"),
        ({"loss": HOME + "kl_cov"}, "whose penalty is 0 in a step's first update"),
        ({"loss": HOME + "kl_cov", "mini_batches": 2, "cov_share": 0.0}, "greater than 0"),
    ],
)
def test_options_without_use_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        config(**options)


def test_kl_cov_may_take_one_update_where_answers_are_of_older_weights() -> None:
    assert config(loss=HOME + "kl_cov", mode="one_step_off").updates_per_step == 1
