"""Losses, corrections and divergences against float64 references that loop over samples as the papers' formulas do.

The batches are ragged, one sample has no trained token, and each is also split over two context-parallel ranks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.runtime.algorithms.token_batches import config
from tests.sync.world import run_world
from verst.runtime.algorithms import corrections, divergences, losses
from verst.runtime.algorithms.averages import token_weights
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.tokens import Sequences, TokenBatch

LENGTHS = (5, 0, 1, 9, 3)
OPTIONS = {
    "clip_low": 0.2,
    "clip_high": 0.28,
    "clip_ratio_c": 3.0,
    "correction_low": 0.7,
    "correction_high": 1.4,
}


@dataclasses.dataclass
class Ragged:
    """Samples as lists, in float64."""

    logprobs: list[np.ndarray]
    old: list[np.ndarray]
    rollout: list[np.ndarray]
    reference: list[np.ndarray]
    advantages: list[float]

    @staticmethod
    def random(seed: int, spread: float = 0.4) -> Ragged:
        random = np.random.default_rng(seed)
        base = [-random.exponential(1.0, n) for n in LENGTHS]
        near = [[b + random.normal(0, spread, len(b)) for b in base] for _ in range(3)]
        return Ragged(base, *near, advantages=random.normal(0, 1, len(LENGTHS)).tolist())

    def tokens(
        self, mine: np.ndarray | None = None, group: Any = None, **options: Any
    ) -> tuple[TokenBatch, torch.Tensor]:
        """The flat batch and the leaf with the log-probabilities; `mine` are the tokens that this rank holds."""
        rows = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
        mine = np.arange(len(rows)) if mine is None else mine
        if not len(mine):
            raise AssertionError("each rank needs a token here")

        def flat(parts: list[np.ndarray]) -> torch.Tensor:
            return torch.tensor(np.concatenate(parts)[mine])

        logprobs = flat(self.logprobs).requires_grad_()
        batch = TokenBatch(
            logprobs=logprobs,
            entropy=torch.zeros(len(mine), dtype=torch.float64),
            advantages=torch.tensor(np.array(self.advantages)[rows[mine]]),
            versions=torch.zeros(len(mine), dtype=torch.int64),
            signals={
                "old_logprobs": flat(self.old),
                "rollout_logprobs": flat(self.rollout),
                "reference_logprobs": flat(self.reference),
            },
            sequences=Sequences(torch.tensor(rows[mine]), len(LENGTHS), group),
            config=settings(**options),
        )
        return batch, logprobs


def settings(**options: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_construct(**{**dict(config()), **OPTIONS, **options})


def clipped(ratio: torch.Tensor, advantage: float) -> torch.Tensor:
    bounded = ratio.clamp(1 - OPTIONS["clip_low"], 1 + OPTIONS["clip_high"])
    surrogate = torch.minimum(ratio * advantage, bounded * advantage)
    return -(torch.clamp(surrogate, min=3.0 * advantage) if advantage < 0 else surrogate)


def grpo_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """Sum over the sample's tokens, eq. 7 of arXiv:1707.06347 with the bounds of arXiv:2503.14476."""
    return clipped((logp - old).exp(), advantage).sum()


def gspo_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """Eqs. 5 and 7 of arXiv:2507.18071: one ratio for the sample. Times its length, as the others are sums."""
    return clipped((logp - old).mean().exp(), advantage) * len(logp)


def cispo_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """Eqs. 4 and 5 of arXiv:2506.13585."""
    ratio = (logp - old).exp().clamp(1 - OPTIONS["clip_low"], 1 + OPTIONS["clip_high"]).detach()
    return -(ratio * advantage * logp).sum()


def sapo_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """Eqs. 5 and 6 of arXiv:2511.20347."""
    tau = 1.0 if advantage > 0 else 1.05
    return -(torch.sigmoid(tau * ((logp - old).exp() - 1)) * 4 / tau * advantage).sum()


def gmpo_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """arXiv:2507.20673: the geometric mean of min(sgn r A, sgn clip(r, e^-low, e^high) A), times the length."""
    ratio = (logp - old).exp()
    bounded = ratio.clamp(math.exp(-OPTIONS["clip_low"]), math.exp(OPTIONS["clip_high"]))
    kept = torch.minimum(ratio, bounded) if advantage > 0 else torch.maximum(ratio, bounded)
    return -advantage * kept.prod() ** (1 / len(logp)) * len(logp)


def dppo_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    """arXiv:2602.04879 with the binary total variation |p - p_old| as the divergence."""
    total = torch.zeros((), dtype=torch.float64)
    for new, was in zip(logp, old, strict=True):
        ratio = (new - was).exp()
        away = ratio > 1 if advantage > 0 else ratio < 1
        bound = OPTIONS["clip_high"] if advantage > 0 else OPTIONS["clip_low"]
        masked = away and abs(new.exp() - was.exp()) > bound
        total = total - advantage * (ratio.detach() if masked else ratio)
    return total


def reinforce_sample(logp: torch.Tensor, old: torch.Tensor, advantage: float) -> torch.Tensor:
    return -(advantage * logp).sum()


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "grpo": grpo_sample,
    "gspo": gspo_sample,
    "cispo": cispo_sample,
    "sapo": sapo_sample,
    "gmpo": gmpo_sample,
    "dppo": dppo_sample,
    "reinforce": reinforce_sample,
}


def reference(data: Ragged, name: str, average: str) -> tuple[float, np.ndarray]:
    """The objective and its gradient, sample by sample."""
    leaves = [torch.tensor(x).requires_grad_() for x in data.logprobs]
    total = torch.zeros((), dtype=torch.float64)
    with_tokens = sum(n > 0 for n in LENGTHS)
    scales = {"token": lambda n: 1 / sum(LENGTHS), "sample": lambda n: 1 / (with_tokens * n)}
    scales["constant"] = lambda n: 1 / (len(LENGTHS) * 16)
    for leaf, old, advantage in zip(leaves, data.old, data.advantages, strict=True):
        if len(leaf):
            total = total + scales[average](len(leaf)) * LOSSES[name](leaf, torch.tensor(old), advantage)
    total.backward()
    return total.item(), np.concatenate([leaf.grad for leaf in leaves if leaf.grad is not None])


def weights(average: Any) -> torch.Tensor:
    return torch.tensor(np.repeat(token_weights(LENGTHS, average, longest=16), LENGTHS))


@pytest.mark.parametrize("average", ["token", "sample", "constant"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_and_its_gradient_are_those_of_the_formula(name: str, average: str, seed: int) -> None:
    data = Ragged.random(seed)
    expected, gradient = reference(data, name, average)
    batch, leaf = data.tokens(
        loss=f"verst.runtime.algorithms.losses:{name}", clip_ratio_c=3.0 if name in ("grpo", "gspo") else None
    )
    total = (weights(average) * getattr(losses, name)(batch).loss).sum()
    total.backward()
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-10, atol=1e-14)
    assert np.abs(gradient).max() > 1e-3


def importance(name: str, log_ratios: np.ndarray) -> np.ndarray:
    """One factor for each token of a sample, by the definitions at the head of `corrections.py`."""
    level, how = name.split("_")
    at = {"token": log_ratios, "sequence": log_ratios.sum(), "geometric": log_ratios.mean()}[level]
    ratio = np.exp(np.clip(np.broadcast_to(at, log_ratios.shape), -20, 20))
    low, high = OPTIONS["correction_low"], OPTIONS["correction_high"]
    return (
        np.clip(ratio, low, high)
        if how == "truncated"
        else np.where((ratio >= low) & (ratio <= high), ratio, 0)
    )


CORRECTIONS = [
    f"{level}_{how}" for level in ("token", "sequence", "geometric") for how in ("truncated", "masked")
]


@pytest.mark.parametrize("name", CORRECTIONS)
@pytest.mark.parametrize("seed", range(5))
def test_a_correction_is_that_of_its_definition(name: str, seed: int) -> None:
    data = Ragged.random(seed, spread=0.25)
    batch, _ = data.tokens()
    found = getattr(corrections, name)(batch)
    expected = [importance(name, o - r) for o, r in zip(data.old, data.rollout, strict=True) if len(o)]
    np.testing.assert_allclose(found.numpy(), np.concatenate(expected), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_opsm_masks_negative_samples_that_the_policy_has_left(seed: int) -> None:
    """Eq. 9 of arXiv:2512.02556, with a delta of log(1.05)."""
    data = Ragged.random(seed, spread=0.25)
    batch, _ = data.tokens(correction_low=0.0, correction_high=1.05)
    expected = [
        np.full(len(p), float(not (a < 0 and (r - p).mean() > math.log(1.05))))
        for p, r, a in zip(data.logprobs, data.rollout, data.advantages, strict=True)
        if len(p)
    ]
    np.testing.assert_array_equal(corrections.negative_masked(batch).numpy(), np.concatenate(expected))


@pytest.mark.parametrize("name", [*CORRECTIONS, "negative_masked"])
def test_a_veto_leaves_out_the_whole_sample(name: str) -> None:
    data = Ragged.random(2, spread=0.25)
    data.rollout[3] = data.rollout[3].copy()
    data.rollout[3][4] = data.old[3][4] + 5.0  # a ratio of exp(-5)
    of_sample = np.repeat(np.arange(len(LENGTHS)), LENGTHS) == 3
    factors = getattr(corrections, name)
    vetoed = factors(data.tokens(correction_veto=1e-2)[0]).numpy()
    free = factors(data.tokens(correction_veto=1e-3)[0]).numpy()
    np.testing.assert_array_equal(free, factors(data.tokens()[0]).numpy())
    np.testing.assert_array_equal(vetoed, np.where(of_sample, 0.0, free))


def test_the_corrections_differ_and_mask_something() -> None:
    found = [getattr(corrections, name)(Ragged.random(1, spread=0.25).tokens()[0]) for name in CORRECTIONS]
    assert len({tuple(values.tolist()) for values in found}) == len(CORRECTIONS)
    assert all((values == 0).any() for values in found[1::2])


def test_divergences_are_those_of_their_definition() -> None:
    data = Ragged.random(3)
    batch, _ = data.tokens()
    p, q = np.concatenate(data.logprobs), np.concatenate(data.reference)
    for name, expected in (
        ("k1", p - q),
        ("k2", (p - q) ** 2 / 2),
        ("k3", np.exp(q - p) - 1 - (q - p)),
    ):
        values = getattr(divergences, name)(batch.logprobs, batch.signals["reference_logprobs"])
        np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-10, atol=1e-14)


def test_with_importance_the_expected_gradient_is_that_of_the_divergence() -> None:
    """Exactly, by summing over a vocabulary of five, where the old policy is another one."""
    random = np.random.default_rng(0)
    old, other = (torch.tensor(random.normal(0, 1, 5)).log_softmax(-1) for _ in range(2))
    logits = torch.tensor(random.normal(0, 1, 5)).requires_grad_()
    logp = logits.log_softmax(-1)
    (logp.exp() * (logp - other)).sum().backward()
    exact, logits.grad = logits.grad, None
    for estimate in (divergences.k1, divergences.k3):
        logp = logits.log_softmax(-1)
        (old.exp() * estimate(logp, other) * losses.policy_ratio(logp, old)).sum().backward()
        found, logits.grad = logits.grad, None
        torch.testing.assert_close(found, exact)


def test_k2s_expected_gradient_is_that_of_the_divergence_on_policy() -> None:
    random = np.random.default_rng(1)
    other = torch.tensor(random.normal(0, 1, 5)).log_softmax(-1)
    logits = torch.tensor(random.normal(0, 1, 5)).requires_grad_()
    logp = logits.log_softmax(-1)
    (logp.exp() * (logp - other)).sum().backward()
    exact, logits.grad = logits.grad, None
    logp = logits.log_softmax(-1)
    (logp.detach().exp() * divergences.k2(logp, other)).sum().backward()
    torch.testing.assert_close(logits.grad, exact)


def _over_two_ranks(rank: int, world: int, store: str) -> None:
    """Tokens alternate between the ranks; each holds part of every sample but the one of a single token."""
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    mine = np.arange(rank, sum(LENGTHS), world)
    for seed in range(3):
        data = Ragged.random(seed, spread=0.25)
        for name in ("gspo", "grpo", "gmpo"):
            _, gradient = reference(data, name, "sample")
            batch, leaf = data.tokens(mine, dist.group.WORLD)
            (weights("sample")[mine] * getattr(losses, name)(batch).loss).sum().backward()
            assert leaf.grad is not None
            np.testing.assert_allclose(leaf.grad.numpy(), gradient[mine], rtol=1e-10, atol=1e-14)
        whole, _ = data.tokens()
        for name in CORRECTIONS:
            factors = getattr(corrections, name)
            np.testing.assert_allclose(factors(batch).numpy(), factors(whole).numpy()[mine], rtol=1e-12)
        np.testing.assert_array_equal(
            batch.sequences.largest(batch.logprobs).numpy(),
            whole.sequences.largest(whole.logprobs)[mine].numpy(),
        )
    dist.destroy_process_group()


@pytest.mark.long
def test_whole_samples_are_seen_over_context_parallel_ranks() -> None:
    run_world(2, _over_two_ranks)


def test_a_stand_in_belongs_to_no_sample() -> None:
    sequences = Sequences(torch.tensor([-1, 0, 0]), 1)
    values = torch.tensor([math.inf, 1.0, 3.0])
    assert sequences.sum(values).tolist() == [0.0, 4.0, 4.0]
    assert sequences.mean(values).tolist() == [0.0, 2.0, 2.0]
