"""Routing replay's data: which layers route, and the engine's answer in the fewest bytes that plain slices allow.

SGLang returns one int32 for each expert of every layer, dense ones too. Verst keeps mixture-of-experts layers only,
8 bits for an expert of up to 256, 9 of up to 512, and so on: the K experts of a token in a layer are one *entry* of
whole bytes, so that tokens and layers are cut out of a routing, uint8 [tokens, MoE layers, entry], like out of any
array. An entry of all ones says that the engine does not know; top-k experts differ, so none can look like it.

Entropy coding is left out: zstd takes half off (docs/routing_replay.md has the figures), but its blocks cannot be cut.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pybase64


@dataclass(frozen=True)
class RoutingShape:
    """What the routing of a model looks like."""

    layers: int  # of the whole model, without multi-token prediction
    moe_layers: tuple[int, ...]  # indices of those that route, ascending
    experts: int  # routed experts of a layer
    top_k: int

    @property
    def bits(self) -> int:
        """Of one expert's index."""
        return expert_bits(self.experts)

    @property
    def entry_bytes(self) -> int:
        """Of one token's experts in one layer."""
        return entry_bytes(self.experts, self.top_k)

    @property
    def token_bytes(self) -> int:
        """Of one token's experts in all layers."""
        return len(self.moe_layers) * self.entry_bytes


UNKNOWN = 0xFF  # every byte of an entry that the engine does not know


def expert_bits(experts: int) -> int:
    """Bits of an index below `experts`, 8 at least."""
    return max(8, (experts - 1).bit_length())


def entry_bytes(experts: int, top_k: int) -> int:
    """Whole bytes that `top_k` indices take."""
    return -(-top_k * expert_bits(experts) // 8)


def pack(indices: np.ndarray, experts: int) -> np.ndarray:
    """Indices [..., K] below `experts`, any integer dtype -> entries uint8 [..., entry]."""
    bits = expert_bits(experts)
    if bits == 8:
        return indices.astype(np.uint8)
    places = np.arange(bits, dtype=np.uint32)
    ones = ((indices[..., None].astype(np.uint32) >> places) & 1).astype(np.uint8)
    return np.packbits(ones.reshape(*indices.shape[:-1], -1), axis=-1, bitorder="little")


def unpack(entries: np.ndarray, experts: int, top_k: int) -> np.ndarray:
    """The inverse of `pack`: int32 [..., K]. What it makes of an unknown entry means nothing."""
    bits = expert_bits(experts)
    if bits == 8:
        return entries.astype(np.int32)
    ones = np.unpackbits(entries, axis=-1, count=top_k * bits, bitorder="little")
    ones = ones.reshape(*entries.shape[:-1], top_k, bits).astype(np.int32)
    return (ones << np.arange(bits, dtype=np.int32)).sum(-1, dtype=np.int32)


def routing_shape(config: Mapping[str, Any]) -> RoutingShape | None:
    """The routing of a Hugging Face model, from its config.json; None for a dense model.

    Covers the ways in which families say which layers route: `decoder_sparse_step` with `mlp_only_layers`
    (Qwen), `first_k_dense_replace` with `moe_layer_freq` (DeepSeek, Kimi), `mlp_layer_types` (GLM).
    """
    config = config.get("text_config") or config
    experts = _first(config, "n_routed_experts", "num_experts", "num_local_experts")
    if not experts:
        return None
    layers = config["num_hidden_layers"]
    dense_first = config.get("first_k_dense_replace") or 0
    frequency = config.get("moe_layer_freq") or 1
    step = config.get("decoder_sparse_step") or 1
    mlp_only = set(config.get("mlp_only_layers") or ())
    types = config.get("mlp_layer_types")

    def routes(layer: int) -> bool:
        if types:
            return types[layer] == "sparse"
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


def decode_rows(encoded: str, what: str, unit: str, tokens: int, layers: int, top_k: int) -> np.ndarray:
    """SGLang's choices as int32 [tokens, layers, top_k], of which it may have sent those of one token more.

    `encoded` is base64 of the little-endian array. Raises ValueError, "`what` N bytes … `unit`", for another size.
    """
    try:
        raw = pybase64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{what} what is not base64: {error}") from error
    row_bytes = layers * top_k * 4
    rows, rest = divmod(len(raw), row_bytes)
    if rest or rows not in (tokens, tokens + 1):
        raise ValueError(
            f"{what} {len(raw)} bytes; {tokens} tokens x {layers} layers x {top_k} {unit} x 4 bytes are "
            f"{tokens * row_bytes} (or one token more)"
        )
    return np.frombuffer(raw, dtype="<i4").reshape(rows, layers, top_k)[:tokens]


def decode_routed_experts(encoded: str, shape: RoutingShape, tokens: int) -> np.ndarray:
    """SGLang's `routed_experts` as uint8 [tokens, MoE layers, entry].

    `encoded` is base64 of little-endian int32 [tokens or tokens + 1, all layers, top_k]: when the engine
    ran the last token through the model as well, one row too many comes, and is dropped. Where the engine has
    nothing written down (-1, or the zeros of its buffer) the entry is unknown.
    Raises ValueError when the size or a value does not fit the model.
    """
    routing = decode_rows(encoded, "routed experts hold", "experts", tokens, shape.layers, shape.top_k)
    routing = routing[:, list(shape.moe_layers)]
    if routing.size and not (routing.min() >= -1 and routing.max() < shape.experts):
        raise ValueError(
            f"routed experts reach from {routing.min()} to {routing.max()}; "
            f"the model has {shape.experts} experts"
        )
    entries = pack(routing, shape.experts)
    entries[_unwritten(routing)] = UNKNOWN
    return entries


def _unwritten(routing: np.ndarray) -> np.ndarray:
    """Where [tokens, layers, K] holds no choice of K experts: bool [tokens, layers]."""
    if routing.shape[-1] == 1:
        return routing[..., 0] < 0
    return (routing[..., 0] < 0) | (routing[..., 0] == routing[..., 1])
