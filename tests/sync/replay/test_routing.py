"""The engine's routing is narrowed without loss, and what does not fit the model is refused."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verst.sync.replay.routing import (
    UNKNOWN,
    RoutingShape,
    decode_routed_experts,
    pack,
    routing_shape,
    unpack,
)

SHAPE = RoutingShape(layers=4, moe_layers=(1, 3), experts=300, top_k=2)


def encoded(rows: int, experts: int = 300, layers: int = 4, top_k: int = 2) -> tuple[str, np.ndarray]:
    scores = np.random.default_rng(0).random((rows, layers, experts))
    routing = np.argsort(scores, axis=-1)[..., :top_k].astype("<i4")
    return base64.b64encode(routing.tobytes()).decode(), routing


@pytest.mark.parametrize(
    ("experts", "top_k", "entry"), [(8, 2, 2), (256, 8, 8), (257, 8, 9), (512, 10, 12), (700, 3, 4)]
)
@pytest.mark.parametrize("extra", [0, 1])
def test_moe_layers_are_kept_in_the_fewest_bytes(experts: int, top_k: int, entry: int, extra: int) -> None:
    text, routing = encoded(9 + extra, experts, top_k=top_k)
    shape = RoutingShape(layers=4, moe_layers=(1, 3), experts=experts, top_k=top_k)
    entries = decode_routed_experts(text, shape, tokens=9)
    assert (entries.dtype, entries.shape) == (np.uint8, (9, 2, entry))
    assert shape.token_bytes == 2 * entry
    np.testing.assert_array_equal(unpack(entries, experts, top_k), routing[:9, [1, 3]])


@given(st.integers(2, 5000), st.integers(1, 12), st.integers(0, 2**32))
def test_packing_loses_nothing_and_no_choice_looks_unknown(experts: int, top_k: int, seed: int) -> None:
    top_k = min(top_k, experts)
    random = np.random.default_rng(seed)
    indices = np.stack([random.permutation(experts)[:top_k] for _ in range(6)]).reshape(3, 2, top_k)
    indices[0, 0] = np.arange(experts - top_k, experts)
    entries = pack(indices, experts)
    np.testing.assert_array_equal(unpack(entries, experts, top_k), indices)
    if top_k > 1:
        assert not (entries == UNKNOWN).all(-1).any()


def test_what_the_engine_has_not_written_down_is_unknown() -> None:
    _, routing = encoded(9)
    routing[2, 1] = -1
    routing[5, 3] = 0
    routing[7, 0] = -1  # a dense layer
    text = base64.b64encode(routing.tobytes()).decode()
    unknown = (decode_routed_experts(text, SHAPE, tokens=9) == UNKNOWN).all(-1)
    assert np.argwhere(unknown).tolist() == [[2, 0], [5, 1]]


def test_misfits_are_refused() -> None:
    text, _ = encoded(9)
    with pytest.raises(ValueError, match="hold 288 bytes; 5 tokens x 4 layers x 2 experts x 4 bytes are 160"):
        decode_routed_experts(text, SHAPE, tokens=5)
    with pytest.raises(ValueError, match="not base64"):
        decode_routed_experts("?" + text, SHAPE, tokens=9)
    fewer = RoutingShape(layers=4, moe_layers=(1, 3), experts=100, top_k=2)
    with pytest.raises(ValueError, match=r"reach from 0 to 29[0-9]; the model has 100 experts"):
        decode_routed_experts(encoded(50)[0], fewer, tokens=50)


@pytest.mark.parametrize(
    ("config", "moe_layers"),
    [
        ({"num_experts": 8, "decoder_sparse_step": 1, "mlp_only_layers": []}, (0, 1, 2, 3, 4, 5)),
        ({"num_experts": 8, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1, 5)),
        ({"n_routed_experts": 8, "first_k_dense_replace": 2, "moe_layer_freq": 1}, (2, 3, 4, 5)),
        ({"n_routed_experts": 8, "first_k_dense_replace": 1, "moe_layer_freq": 2}, (2, 4)),
        ({"n_routed_experts": 8, "moe_layer_freq": [0, 1, 1, 0, 1, 1]}, (1, 2, 4, 5)),
        ({"n_routed_experts": 8, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 4}, (2, 3, 4, 5)),
    ],
)
def test_which_layers_route_follows_the_config(config: dict[str, Any], moe_layers: tuple[int, ...]) -> None:
    whole = config | {"num_hidden_layers": 6, "num_experts_per_tok": 2}
    assert routing_shape(whole) == RoutingShape(6, moe_layers, 8, 2)
    assert routing_shape({"text_config": whole}) == RoutingShape(6, moe_layers, 8, 2)


def test_a_dense_model_has_no_routing() -> None:
    assert routing_shape({"num_hidden_layers": 6}) is None
    assert routing_shape({"num_hidden_layers": 2, "num_experts": 8, "mlp_only_layers": [0, 1]}) is None
