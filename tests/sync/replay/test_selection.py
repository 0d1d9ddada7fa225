"""Sparse attention's choices are packed and read without a change, and a token's bytes follow from its position."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import torch

from verst.sync.replay.selection import (
    SelectionShape,
    as_bits,
    choice_sources,
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
    shape, indices = SelectionShape((0, 1), 4), choices(60, 2, 4)
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
    assert selection_shape(config) == SelectionShape(tuple(range(61)), 2048)
    assert selection_shape({"num_hidden_layers": 61}) is None


GLM_5_2 = {"num_hidden_layers": 78, "index_topk_freq": 4, "index_skip_topk_offset": 3}
SHARING = {
    "freq and offset": GLM_5_2,
    "freq": {"num_hidden_layers": 9, "index_topk_freq": 3},
    "pattern": {"num_hidden_layers": 6, "index_topk_pattern": "FFSSFS"},
    "none": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("name", SHARING)
def test_which_layers_share_is_read_as_sglang_and_transformers_read_it(name: str) -> None:
    from sglang.srt.configs.model_config import dsa_layer_skips_topk, get_num_indexer_layers
    from transformers import GlmMoeDsaConfig

    config = GlmMoeDsaConfig(**SHARING[name], architectures=["GlmMoeDsaForCausalLM"])
    sources = choice_sources(config.to_dict())
    shares = [source != layer for layer, source in enumerate(sources)]
    assert shares == [kind == "shared" for kind in config.indexer_types]
    assert shares == [dsa_layer_skips_topk(config, i) for i in range(config.num_hidden_layers)]
    assert len(sources) == get_num_indexer_layers(config)
    # A layer takes the choice that transformers' and SGLang's layers hand on: the last one made.
    assert sources == tuple(max(j for j in range(i + 1) if not shares[j]) for i in range(len(sources)))


def test_glm_5_2_chooses_in_21_of_its_78_layers() -> None:
    sources = choice_sources(GLM_5_2)
    assert sources[:11] == (0, 1, 2, 2, 2, 2, 6, 6, 6, 6, 10)
    shape = selection_shape(GLM_5_2 | {"index_topk": 2048, "index_n_heads": 32})
    assert shape is not None
    assert len(shape.choosing) == 21


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (
            {"num_hidden_layers": 4, "indexer_types": ["full", "full", "shared", "full"]},
            r"reads, layers \[2\] of 4 share a choice; .* SGLang reads, layers \[\] of 4; they must",
        ),
        ({"num_hidden_layers": 4, "indexer_types": ["full"] * 3}, r"layers \[\] of 3 share"),
        (
            {"num_hidden_layers": 3, "index_topk_pattern": ["full", "shared"] * 2},
            r"a string of F and S, one for",
        ),
        ({"num_hidden_layers": 3, "index_topk_pattern": "FS"}, r"one for each of the 3 layers"),
        ({"num_hidden_layers": 3, "index_topk_pattern": "SFF"}, r"layer 0 shares a choice"),
    ],
)
def test_a_sharing_that_engine_and_trainer_would_read_differently_is_refused(
    config: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        choice_sources(config)


def test_layers_that_share_come_as_copies_and_are_kept_once() -> None:
    """SGLang captures in every layer; one that runs no indexer mirrors the choice that it was handed."""
    shape, own = SelectionShape((0, 1, 1, 3, 3), 4), choices(60, 3, 4)
    indices = own[:, [0, 1, 1, 2, 2]].copy()
    indices[:4, 4] = 7  # tokens that take all

    def answer() -> np.ndarray:
        return decode_indexer_topk(base64.b64encode(indices.tobytes()).decode(), shape, 60)

    np.testing.assert_array_equal(answer(), pack(own, 4))
    indices[20, 4] = own[20, 0]
    with pytest.raises(
        ValueError, match="token 20 in layer 4 is not that of layer 3, whose choice it shares"
    ):
        answer()
    indices[20, 3] = 99
    with pytest.raises(ValueError, match="of token 20 in layer 3 reaches from 99 to 99"):
        answer()
