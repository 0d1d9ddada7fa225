"""The engine's routing is narrowed without loss, and what does not fit the model is refused."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from verst.sync.routing import RoutingShape, decode_routed_experts, routing_shape

SHAPE = RoutingShape(layers=4, moe_layers=(1, 3), experts=300, top_k=2)


def encoded(rows: int, experts: int = 300, layers: int = 4, top_k: int = 2) -> tuple[str, np.ndarray]:
    routing = np.random.default_rng(0).integers(0, experts, (rows, layers, top_k), dtype=np.int32)
    return base64.b64encode(routing.astype("<i4").tobytes()).decode(), routing


@pytest.mark.parametrize(
    ("experts", "dtype"), [(8, np.uint8), (256, np.uint8), (257, np.uint16), (512, np.uint16)]
)
@pytest.mark.parametrize("extra", [0, 1])
def test_moe_layers_are_kept_in_the_narrowest_type(experts: int, dtype: Any, extra: int) -> None:
    text, routing = encoded(9 + extra, experts)
    shape = RoutingShape(layers=4, moe_layers=(1, 3), experts=experts, top_k=2)
    narrow = decode_routed_experts(text, shape, tokens=9)
    assert narrow.dtype == dtype
    np.testing.assert_array_equal(narrow, routing[:9, [1, 3]])


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
    ],
)
def test_which_layers_route_follows_the_config(config: dict[str, Any], moe_layers: tuple[int, ...]) -> None:
    whole = config | {"num_hidden_layers": 6, "num_experts_per_tok": 2}
    assert routing_shape(whole) == RoutingShape(6, moe_layers, 8, 2)
    assert routing_shape({"text_config": whole}) == RoutingShape(6, moe_layers, 8, 2)


def test_a_dense_model_has_no_routing() -> None:
    assert routing_shape({"num_hidden_layers": 6}) is None
    assert routing_shape({"num_hidden_layers": 2, "num_experts": 8, "mlp_only_layers": [0, 1]}) is None
