"""The promise: collation puts every token where its label, weight and routing are, on every context-parallel rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.runtime.trainer.tiny_models import MOE_LAYERS, ROUTING, make_samples
from verst.runtime.trainer.batch import Batch, Collator, Weighting

EXPERTS, TOPK = ROUTING["qwen3_moe"]
SAMPLES = make_samples(None, routing="qwen3_moe")
WEIGHTINGS = [Weighting(advantage=i - 2.0, token_weight=0.1 * (i + 1)) for i in range(len(SAMPLES))]
CPU = torch.device("cpu")


def _collator(cp_rank: int = 0, cp_size: int = 1) -> Collator:
    return Collator(cp_rank, cp_size, 2 * cp_size, CPU, MOE_LAYERS, EXPERTS, TOPK)


def _described(batch: Batch) -> dict[tuple[int, int], tuple[int, int, float, float]]:
    """(sample, response token) -> its input token, label, weight and advantage."""
    rows = batch.tokens.shape[0]
    found = {}
    for n, (sample, token) in enumerate(batch.places.tolist()):
        s, b = divmod(int(batch.positions[n]), rows)
        assert b == sample
        found[sample, token] = (
            int(batch.tokens[b, s]),
            int(batch.labels[n]),
            round(float(batch.weights[n]), 6),
            float(batch.advantages[n]),
        )
    return found


def _expected(trained_only: bool) -> dict[tuple[int, int], tuple[int, int, float, float]]:
    found = {}
    for i, s in enumerate(SAMPLES):
        tokens = np.concatenate([s.prompt_ids, s.response_ids])
        for r in range(len(s.response_ids)):
            if s.loss_mask[r] or not trained_only:
                at = len(s.prompt_ids) - 1 + r
                weight = WEIGHTINGS[i] if trained_only else Weighting(0.0, 0.0)
                values = (round(weight.token_weight, 6), weight.advantage)
                found[i, r] = (int(tokens[at]), int(tokens[at + 1]), *values)
    return found


def test_each_trained_token_is_predicted_from_the_one_before() -> None:
    assert _described(_collator()(SAMPLES, WEIGHTINGS, 16)) == _expected(trained_only=True)


def test_without_weights_every_response_token_is_predicted() -> None:
    assert _described(_collator()(SAMPLES, None, 16)) == _expected(trained_only=False)


@pytest.mark.parametrize("cp_size", [2, 3])
def test_context_parallel_ranks_share_the_tokens_in_a_zig_zag(cp_size: int) -> None:
    parts = [_collator(rank, cp_size)(SAMPLES, WEIGHTINGS, 16, replay=True) for rank in range(cp_size)]
    merged: dict = {}
    for part in parts:
        if part.places[0, 0] >= 0:
            described = _described(part)
            assert not merged.keys() & described.keys()
            merged |= described
    assert merged == _expected(trained_only=True)
    length = parts[0].tokens.shape[1] * cp_size
    chunk = length // (2 * cp_size)
    for rank, part in enumerate(parts):
        last = 2 * cp_size - 1 - rank
        mine = [*range(rank * chunk, (rank + 1) * chunk), *range(last * chunk, (last + 1) * chunk)]
        assert part.position_ids[0].tolist() == mine
        assert part.routing is not None
        assert part.routing_known is not None
        for row, sample in enumerate(SAMPLES):
            for s, position in enumerate(mine):
                known = position < sample.length - 1
                assert bool(part.routing_known[row, s]) == known
                if known:
                    assert part.routing[row, s].tolist() == sample.routing[position].tolist()


def test_unknown_routing_is_valid_and_spread() -> None:
    batch = _collator()([], [], 16, replay=True)
    assert batch.routing is not None
    assert batch.routing.shape == (1, 16, MOE_LAYERS, TOPK)
    assert (batch.routing.sort(-1).values.diff(dim=-1) > 0).all()
    assert torch.bincount(batch.routing.flatten(), minlength=EXPERTS).unique().numel() == 1


def test_empty_micro_batch_trains_nothing() -> None:
    batch = _collator()([], [], 6)
    assert batch.tokens.shape == (1, 6)
    assert (batch.weights.tolist(), batch.real_tokens, batch.places.tolist()) == ([0.0], 0, [[-1, -1]])


def test_sample_longer_than_its_micro_batch_is_named() -> None:
    with pytest.raises(ValueError, match="sample 4 of group 0 has 15 tokens, its micro-batch is 8 wide"):
        _collator()([SAMPLES[4]], [WEIGHTINGS[4]], 8)


def test_routing_of_another_shape_is_named() -> None:
    collator = Collator(0, 1, 2, CPU, MOE_LAYERS + 1, EXPERTS, TOPK)
    with pytest.raises(ValueError, match=r"sample 0 of group 0 carries routing of \(3, 2\).*has \(4, 2\)"):
        collator(SAMPLES, None, 16, replay=True)
