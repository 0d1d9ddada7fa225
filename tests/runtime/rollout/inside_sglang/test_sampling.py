"""A token is drawn from its own row, seed and position alone, with the probability it should have."""

from __future__ import annotations

import torch

from verst.runtime.rollout.inside_sglang.sampling import draw, sample_restricted, uniform

ALL = 1 << 30  # SGLang's "no top-k"


def rows(count: int, vocabulary: int = 97) -> torch.Tensor:
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(count)).mul(2).softmax(-1)


def restricted(probs: torch.Tensor, k: list[int], p: list[float], seeds: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros(len(probs))
    return sample_restricted(probs, torch.tensor(k), torch.tensor(p), zeros, False, seeds, seeds * 0 + 5)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    seeds = torch.arange(20_000)
    u = uniform(seeds, torch.full_like(seeds, 3))
    v = uniform(torch.full_like(seeds, 3), seeds)
    for numbers in (u, v):
        assert numbers.min() > 0
        assert numbers.max() < 1
        counts = torch.histc(numbers, 20, 0, 1)
        assert (counts - 1000).abs().max() < 5 * 1000**0.5
    assert torch.corrcoef(torch.stack([u, v]))[0, 1].abs() < 0.03
    assert torch.corrcoef(torch.stack([u[1:], u[:-1]]))[0, 1].abs() < 0.03


def test_draws_follow_the_weights_and_never_take_what_has_none() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0]).repeat(8000, 1)
    seeds = torch.arange(8000)
    drawn = draw(weights, seeds, seeds * 0).view(-1).bincount(minlength=5)
    assert drawn[[0, 2, 4]].sum() == 0
    assert abs(int(drawn[1]) - 6000) < 5 * (8000 * 0.75 * 0.25) ** 0.5


def test_a_row_draws_the_same_in_any_company_and_on_either_path() -> None:
    probs, seeds = rows(12), torch.arange(12) * 7919
    alone = torch.cat([draw(probs[i : i + 1], seeds[i : i + 1], torch.tensor([5])) for i in range(12)]).view(
        -1
    )
    torch.testing.assert_close(draw(probs, seeds, torch.full((12,), 5)).view(-1), alone)
    k = [ALL, 5] * 6
    mixed = restricted(probs, k, [1.0, 0.5] * 6, seeds)
    torch.testing.assert_close(mixed[::2].long(), alone[::2])


def test_top_k_and_top_p_leave_what_they_should() -> None:
    probs, seeds = rows(1).repeat(3000, 1), torch.arange(3000)
    order = probs[0].argsort(descending=True)
    assert set(restricted(probs, [3] * 3000, [1.0] * 3000, seeds).tolist()) == set(order[:3].tolist())
    kept = int((probs[0][order].cumsum(0) < 0.6).sum()) + 1
    assert set(restricted(probs, [ALL] * 3000, [0.6] * 3000, seeds).tolist()) == set(order[:kept].tolist())
