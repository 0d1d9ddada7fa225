"""Sparse attention's choices are packed and read without a change, and a token's bytes follow from its position."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch

from verst.sync.selection import (
    SelectionShape,
    as_bits,
    decode_indexer_topk,
    offsets,
    pack,
    selection_shape,
    sizes,
    unpack,
)


def choices(tokens: int, layers: int, top_k: int, seed: int = 0) -> np.ndarray:
    """As SGLang gives them: int32 [tokens, layers, K], in any order, -1 behind the last."""
    random = np.random.default_rng(seed)
    found = np.full((tokens, layers, top_k), -1, np.int32)
    for token in range(tokens):
        for layer in range(layers):
            some = random.permutation(token + 1)[:top_k]
            found[token, layer, : len(some)] = some
    return found


def as_sets(indices: np.ndarray) -> list[set[int]]:
    return [set(row.tolist()) - {-1} for row in indices.reshape(-1, indices.shape[-1])]


@pytest.mark.parametrize(("tokens", "top_k"), [(5, 8), (40, 8), (300, 4), (300, 1)])
def test_what_is_packed_is_read(tokens: int, top_k: int) -> None:
    indices = choices(tokens, 3, top_k)
    packed = pack(indices, top_k)
    assert packed.shape == (3, offsets(tokens, top_k)[-1])
    for layer in range(3):
        read = unpack(torch.from_numpy(packed[layer]), np.arange(tokens), top_k)
        assert as_sets(read.numpy()) == as_sets(indices[:, layer])


def test_both_forms_and_both_widths_are_used() -> None:
    positions = np.array([7, 8, 120, 127, 128, 65535, 65536])
    assert sizes(positions, 8).tolist() == [0, 2, 16, 16, 16, 16, 24]
    assert as_bits(positions, 8).tolist() == [True, True, True, True, False, False, False]
    tail = np.array([[5, 65535, 0, 70000, 3, 9, 8, 7]], np.int32)
    at = np.array([70000])
    # `pack` takes whole sequences; a long one's last token alone, as it writes it.
    row = tail.astype("<i4").view(np.uint8).reshape(8, 4)[:, :3].reshape(-1).copy()
    assert as_sets(unpack(torch.from_numpy(row), at, 8).numpy()) == as_sets(tail)


def test_some_tokens_are_cut_out_by_their_positions() -> None:
    indices = choices(200, 1, 4)
    packed, begin = pack(indices, 4), offsets(200, 4)
    mine = np.array([150, 3, 151, 199, 20, 21])
    cut = np.concatenate([packed[0, begin[p] : begin[p + 1]] for p in mine])
    assert len(cut) == sizes(mine, 4).sum()
    assert as_sets(unpack(torch.from_numpy(cut), mine, 4).numpy()) == as_sets(indices[mine, 0])


def test_sglangs_answer_is_decoded_and_checked() -> None:
    shape, indices = SelectionShape(2, 4), choices(60, 2, 4)
    encoded = base64.b64encode(indices.tobytes()).decode()
    for tokens in (60, 59):
        np.testing.assert_array_equal(decode_indexer_topk(encoded, shape, tokens), pack(indices[:tokens], 4))
    with pytest.raises(
        ValueError, match=r"holds 1920 bytes; 50 tokens x 2 layers x 4 positions x 4 bytes are 1600"
    ):
        decode_indexer_topk(encoded, shape, 50)
    for wrong in (indices + 1000, np.where(np.arange(4) == 2, -1, indices), np.zeros_like(indices)):
        with pytest.raises(
            ValueError, match=r"indexer top-k of token 4 in layer 0 .* should be 4 positions up to"
        ):
            decode_indexer_topk(base64.b64encode(wrong.astype("<i4").tobytes()).decode(), shape, 60)


def test_which_models_choose() -> None:
    config = {"num_hidden_layers": 61, "index_topk": 2048, "index_n_heads": 64}
    assert selection_shape(config) == SelectionShape(61, 2048)
    assert selection_shape({"num_hidden_layers": 61}) is None
