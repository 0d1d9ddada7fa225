"""The promise: in the packed row of every context-parallel rank, each token keeps its position, label, weight and
routing."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.sample_factory import make_sample
from tests.runtime.trainer.tiny_models import MOE_LAYERS, ROUTING, make_samples
from verst.runtime.messages.step_plan import MicroBatch, SampleRef
from verst.runtime.trainer.replay.entries import unpack
from verst.runtime.trainer.share.batch import Batch, Collator, Weighting
from verst.runtime.trainer.share.routing import Share, cut_all, require_routing
from verst.sync.replay.routing import UNKNOWN, pack

_, TOPK = ROUTING["qwen3_moe"]
SAMPLES = make_samples(None, routing="qwen3_moe")
WEIGHTINGS = [Weighting(advantage=i - 2.0, weights=[0.1 * (i + 1)]) for i in range(len(SAMPLES))]
CPU = torch.device("cpu")


REFS = [SampleRef(s.group, s.index, 0, s.length, 0.0, [0.0]) for s in SAMPLES]
BY_NAME = {(s.group, s.index): s for s in SAMPLES}


def _collator(cp_rank: int = 0, cp_size: int = 1, share: Share | None = None) -> Collator:
    return Collator(cp_rank, cp_size, 2 * cp_size, CPU, share)


def _described(batch: Batch) -> dict[tuple[int, int], tuple[int, int, float, float]]:
    """Returns (sample, response token) -> input token, label, weight and advantage."""
    found = {}
    for n, (sample, token) in enumerate(batch.places.tolist()):
        at = int(batch.positions[n])
        assert int(batch.position_ids[0, at]) == len(SAMPLES[sample].prompt_ids) - 1 + token
        assert not batch.padding[0, at]
        found[sample, token] = (
            int(batch.tokens[0, at]),
            int(batch.labels[n]),
            round(float(batch.weights[0, n]), 6),
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
                weight = WEIGHTINGS[i] if trained_only else Weighting(0.0, [0.0])
                values = (round(weight.weights[0], 6), weight.advantage)
                found[i, r] = (int(tokens[at]), int(tokens[at + 1]), *values)
    return found


def test_each_trained_token_is_predicted_from_the_one_before() -> None:
    assert _described(_collator()(SAMPLES, WEIGHTINGS)) == _expected(trained_only=True)


def test_without_weights_every_response_token_is_predicted() -> None:
    assert _described(_collator()(SAMPLES, None)) == _expected(trained_only=False)


@pytest.mark.parametrize("cp_size", [2, 3])
def test_context_parallel_ranks_share_the_tokens_in_a_zig_zag(cp_size: int) -> None:
    parts = [_collator(rank, cp_size)(SAMPLES, WEIGHTINGS) for rank in range(cp_size)]
    merged: dict = {}
    for part in parts:
        if part.places[0, 0] >= 0:
            described = _described(part)
            assert not merged.keys() & described.keys()
            merged |= described
    assert merged == _expected(trained_only=True)
    for rank, part in enumerate(parts):
        last, mine = 2 * cp_size - 1 - rank, []
        for sample in SAMPLES:  # each sequence is cut for itself, and padded to no more than it must
            chunk = math.ceil(sample.length / (2 * cp_size))
            mine += [*range(rank * chunk, (rank + 1) * chunk), *range(last * chunk, (last + 1) * chunk)]
        assert part.position_ids[0].tolist() == mine
        real = sum(int((~one.padding).sum()) for one in parts)
        assert real == part.real_tokens == sum(s.length for s in SAMPLES)


@pytest.mark.parametrize(("cp_size", "tp_size"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_each_rank_gets_the_entries_of_the_tokens_and_layers_that_its_routers_see(
    cp_size: int, tp_size: int
) -> None:
    """Over a stage's ranks every token of every layer has its entry once, on the rank that holds the token.
    Last tokens have none."""
    seen: list[tuple[int, int]] = []
    last: list[int] = []
    for cp_rank, tp_rank in itertools.product(range(cp_size), range(tp_size)):
        share = Share((0, 2), 2 * cp_size * tp_size, cp_rank, cp_size, tp_rank, tp_size)
        collate = Collator(cp_rank, cp_size, share.multiple, CPU, share)
        entries = cut_all(share, [MicroBatch(REFS)], BY_NAME, TOPK)[0]
        batch = collate(SAMPLES, WEIGHTINGS, entries)
        assert batch.routing is not None
        assert batch.routed is not None
        assert batch.unrouted is not None
        assert len(batch.routing) == len(batch.routed)
        sizes = [share.size(places) for places in share.places([s.length for s in SAMPLES])]
        assert entries.numel() * share.entry // TOPK == sum(sizes)
        first = tp_rank * batch.tokens.numel() // tp_size  # the first of this rank's tokens
        widths = [width // cp_size for width in batch.padded_lengths]
        samples = np.repeat(np.arange(len(SAMPLES)), widths)
        for at, entry in zip(batch.routed.tolist(), batch.routing, strict=True):
            row, position = int(samples[first + at]), int(batch.position_ids[0, first + at])
            assert entry.tolist() == SAMPLES[row].routing[position, [0, 2]].tolist()
            seen.append((row, position))
        for at in batch.unrouted.tolist():
            row = int(samples[first + at])
            assert int(batch.position_ids[0, first + at]) == SAMPLES[row].length - 1
            last.append(row)
    assert sorted(seen) == [(b, p) for b, s in enumerate(SAMPLES) for p in range(s.length - 1)]
    assert sorted(last) == list(range(len(SAMPLES)))


def test_empty_micro_batch_trains_nothing() -> None:
    batch = _collator()([], [])
    assert batch.tokens.shape == (1, 2)
    assert batch.padding.all()
    assert (batch.weights.tolist(), batch.real_tokens, batch.places.tolist()) == ([[0.0]], 0, [[-1, -1]])


def test_versions_of_an_abandoned_life_are_no_version_of_this_one() -> None:
    versions = np.array([9, 10, 11, 13], np.int32)
    sample = msgspec.structs.replace(make_sample(0, 0, response=4, routing=None), weight_versions=versions)
    for common, versions in ((None, [9, 10, 11, 13]), (10, [9, 10, -1, -1])):
        batch = _collator()([sample], [Weighting(1.0, [0.25], common_version=common)])
        assert batch.versions.tolist() == versions
    assert sample.weight_versions.tolist() == [9, 10, 11, 13]


def test_routing_that_is_missing_or_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"sample 0 of group 0 carries routing of \(3, 2\).*has \(4, 2\)"):
        require_routing(SAMPLES, MOE_LAYERS + 1, TOPK)
    with pytest.raises(ValueError, match=r"sample 0 of group 0 carries no routing"):
        require_routing(make_samples(None), MOE_LAYERS, TOPK)


@pytest.mark.parametrize(("experts", "topk"), [(8, 2), (256, 8), (384, 8), (512, 10), (700, 3)])
def test_entries_unpack_on_the_device_as_they_were_packed(experts: int, topk: int) -> None:
    random = np.random.default_rng(0)
    chosen = np.argsort(random.random((50, 2, experts)), axis=-1)[..., :topk]
    entries = torch.from_numpy(pack(chosen, experts))
    np.testing.assert_array_equal(unpack(entries, experts, topk).long().numpy(), chosen)
    unknown = unpack(torch.full_like(entries, UNKNOWN), experts, topk).long()
    assert 0 <= int(unknown.min()) <= int(unknown.max()) < experts


def test_signals_and_the_weights_of_each_term_stay_with_their_token() -> None:
    samples = [
        msgspec.structs.replace(
            s, signals={**s.signals, "teacher": np.arange(len(s.response_ids), dtype=np.float32) + 100 * i}
        )
        for i, s in enumerate(SAMPLES)
    ]
    weightings = [Weighting(0.0, [0.1 * i, 2.0]) for i in range(len(samples))]
    batch = _collator()(samples, weightings, terms=2, signals=["teacher"])
    for n, (row, token) in enumerate(batch.places.tolist()):
        assert batch.signals["teacher"][n] == 100 * row + token
        assert batch.signals["rollout_logprobs"][n] == samples[row].logprobs[token]
        assert batch.weights[:, n].tolist() == pytest.approx([0.1 * row, 2.0])
    empty = _collator()([], [], terms=2, signals=["teacher"])
    assert (empty.weights.shape, empty.signals["teacher"].tolist()) == ((2, 1), [0.0])


def test_a_sample_that_is_only_imitated_is_predicted_at_temperature_one() -> None:
    sample = make_sample(0, 0, routing=None)
    for tempered, expected in ((True, sample.signals["temperature"].tolist()), (False, [1.0] * 5)):
        batch = _collator()([sample], [Weighting(0.0, [1.0], tempered)])
        assert batch.signals["temperature"].tolist() == expected
