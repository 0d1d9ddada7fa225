"""Packed attention equals attention over each sequence alone, in float64, on every context-parallel rank."""

from __future__ import annotations

import pytest

from tests.sync.world import run_world

LENGTHS = (3, 17, 1, 30, 12, 16, 29)


@pytest.mark.parametrize("latent", [False, True], ids=["grouped", "latent"])
def test_packed_attention_equals_each_sequence_alone(latent: bool) -> None:
    run_world(1, _attends, latent)


def _attends(rank: int, world: int, store: str, latent: bool) -> None:
    import torch

    from verst.runtime.trainer.model import attention
    from verst.runtime.trainer.model.packed_sequences import PackedSequences
    from verst.runtime.trainer.share.packing import pack, padded

    torch.manual_seed(0)
    heads, groups, width, narrow = (4, 4, 24, 16) if latent else (4, 2, 16, 16)
    for ranks in (1, 2, 3):
        multiple = 2 * ranks if ranks > 1 else 1
        lengths = padded(LENGTHS, multiple)
        whole = [
            tuple(
                torch.randn(length, n, d, dtype=torch.float64, requires_grad=True)
                for n, d in ((heads, width), (groups, width), (groups, narrow))
            )
            for length in lengths
        ]
        expected = [_alone(*one, 0.3) for one in whole]
        weights = [torch.randn_like(one) for one in expected]
        wanted = _gradients(whole, sum((e * w).sum() for e, w in zip(expected, weights, strict=True)))

        shares = [pack(LENGTHS, multiple, r, ranks) for r in range(ranks)]
        starts = torch.tensor([0, *lengths]).cumsum(0)
        places = [starts[torch.from_numpy(s.rows)] + torch.from_numpy(s.positions) for s in shares]
        query, key, value = (torch.cat(parts) for parts in zip(*whole, strict=True))
        # What a gather over the ranks returns.
        gathered = torch.cat(places)
        total = torch.zeros((), dtype=torch.float64)
        for r, mine in enumerate(places):
            packed = PackedSequences(lengths, torch.from_numpy(shares[r].positions))
            if ranks == 1:
                found = attention._by_rectangles(query, key, value, packed, None, 0.3)
            else:
                seen = packed.seen(r, ranks)
                keys, values = (one[gathered][seen.gathered] for one in (key, value))
                found = attention._by_rectangles(query[mine], keys, values, packed, seen, 0.3)
            torch.testing.assert_close(found, torch.cat(expected)[mine], rtol=1e-12, atol=1e-12)
            total = total + (found * torch.cat(weights)[mine]).sum()
        for got, right in zip(_gradients(whole, total), wanted, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-11, atol=1e-11)


def _alone(query, key, value, scale):
    """Causal attention of one sequence, written out."""
    import torch

    repeated = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeated, 1), value.repeat_interleave(repeated, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    hidden = torch.ones(len(query), len(query), dtype=torch.bool).triu(1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)


def _gradients(whole, total):
    import torch

    return torch.autograd.grad(total, [tensor for one in whole for tensor in one], retain_graph=True)
