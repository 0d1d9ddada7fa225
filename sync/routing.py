"""Routing replay's data: which layers route, and the engine's answer as the narrowest array that holds it.

SGLang returns one int32 for every layer, dense ones too. Verst keeps mixture-of-experts layers only, as
uint8 for up to 256 experts and uint16 beyond: an eighth or a quarter of the bytes at least.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RoutingShape:
    """What the routing of a model looks like."""

    layers: int  # of the whole model, without multi-token prediction
    moe_layers: tuple[int, ...]  # indices of those that route, ascending
    experts: int  # routed experts of a layer
    top_k: int

    @property
    def dtype(self) -> np.dtype:
        """The narrowest unsigned integer that holds an expert's index."""
        if self.experts > 1 << 16:
            raise ValueError(f"{self.experts} experts do not fit in 16 bits")
        return np.dtype(np.uint8 if self.experts <= 256 else np.uint16)


def routing_shape(config: Mapping[str, Any]) -> RoutingShape | None:
    """The routing of a Hugging Face model, from its config.json; None for a dense model.

    Covers the two ways in which families say which layers route: `decoder_sparse_step` with
    `mlp_only_layers` (Qwen), and `first_k_dense_replace` with `moe_layer_freq` (DeepSeek, GLM, Kimi).
    """
    config = config.get("text_config") or config
    experts = _first(config, "num_experts", "n_routed_experts", "num_local_experts")
    if not experts:
        return None
    layers = config["num_hidden_layers"]
    dense_first = config.get("first_k_dense_replace") or 0
    frequency = config.get("moe_layer_freq") or 1
    step = config.get("decoder_sparse_step") or 1
    mlp_only = set(config.get("mlp_only_layers") or ())

    def routes(layer: int) -> bool:
        if isinstance(frequency, list):  # one flag per layer
            return bool(frequency[layer])
        if layer < dense_first or layer % frequency:
            return False
        return layer not in mlp_only and (layer + 1) % step == 0

    moe_layers = tuple(layer for layer in range(layers) if routes(layer))
    if not moe_layers:
        return None
    return RoutingShape(layers, moe_layers, experts, config["num_experts_per_tok"])


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if config.get(name)), None)


def decode_routed_experts(encoded: str, shape: RoutingShape, tokens: int) -> np.ndarray:
    """SGLang's `routed_experts` as uint8|uint16 [tokens, MoE layers, top_k].

    `encoded` is base64 of little-endian int32 [tokens or tokens + 1, all layers, top_k]: when the engine
    ran the last token through the model as well, one row too many comes, and is dropped.
    Raises ValueError when the size or a value does not fit the model.
    """
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"routed experts are not base64: {error}") from error
    row_bytes = shape.layers * shape.top_k * 4
    rows, rest = divmod(len(raw), row_bytes)
    if rest or rows not in (tokens, tokens + 1):
        raise ValueError(
            f"routed experts hold {len(raw)} bytes; {tokens} tokens x {shape.layers} layers x "
            f"{shape.top_k} experts x 4 bytes are {tokens * row_bytes} (or one token more)"
        )
    routing = np.frombuffer(raw, dtype="<i4").reshape(rows, shape.layers, shape.top_k)
    routing = routing[:tokens, list(shape.moe_layers)]
    if routing.size and not (routing.min() >= 0 and routing.max() < shape.experts):
        raise ValueError(
            f"routed experts reach from {routing.min()} to {routing.max()}; "
            f"the model has {shape.experts} experts"
        )
    return np.ascontiguousarray(routing.astype(shape.dtype))
