"""Routing replay's data: which layers of a model route, and the engine's chosen experts packed into few bytes.

SGLang returns one int32 for each chosen expert of every layer, dense layers included. Verst keeps only the
mixture-of-experts layers, and 8 bits per expert if there are up to 256, 9 bits if there are up to 512, and so on. The K
experts of a token in a layer form one *entry* of whole bytes. So a routing is a plain array, uint8 [tokens, MoE layers,
entry], from which tokens and layers can be sliced. An entry whose bits are all ones means that the engine does not know
the experts. No real entry looks like that, because the K experts of a token differ.

There is no entropy coding: zstd would halve the size (figures in docs/routing_replay.md), but its blocks cannot be
sliced.
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
    """The layers and experts of a model's routing."""

    layers: int  # decoder layers of the whole model, without those for multi-token prediction
    moe_layers: tuple[int, ...]  # indices of the layers that route, ascending
    experts: int  # routed experts per layer
    top_k: int  # experts that are chosen for a token in a layer

    @property
    def bits(self) -> int:
        """Bits of one expert's index."""
        return expert_bits(self.experts)

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token's experts in one layer."""
        return entry_bytes(self.experts, self.top_k)

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's experts in all layers."""
        return len(self.moe_layers) * self.entry_bytes


UNKNOWN = 0xFF  # each byte of an entry whose experts the engine does not know


def expert_bits(experts: int) -> int:
    """Bits of an index below `experts`, at least 8."""
    return max(8, (experts - 1).bit_length())


def entry_bytes(experts: int, top_k: int) -> int:
    """Whole bytes that `top_k` packed indices take."""
    return -(-top_k * expert_bits(experts) // 8)


def pack(indices: np.ndarray, experts: int) -> np.ndarray:
    """Packs indices [..., K] below `experts`, of any integer dtype, into entries uint8 [..., entry]."""
    bits = expert_bits(experts)
    if bits == 8:
        return indices.astype(np.uint8)
    places = np.arange(bits, dtype=np.uint32)
    ones = ((indices[..., None].astype(np.uint32) >> places) & 1).astype(np.uint8)
    return np.packbits(ones.reshape(*indices.shape[:-1], -1), axis=-1, bitorder="little")


def unpack(entries: np.ndarray, experts: int, top_k: int) -> np.ndarray:
    """The inverse of `pack`: int32 [..., K]. The result for an unknown entry has no meaning."""
    bits = expert_bits(experts)
    if bits == 8:
        return entries.astype(np.int32)
    ones = np.unpackbits(entries, axis=-1, count=top_k * bits, bitorder="little")
    ones = ones.reshape(*entries.shape[:-1], top_k, bits).astype(np.int32)
    return (ones << np.arange(bits, dtype=np.int32)).sum(-1, dtype=np.int32)


def routing_shape(config: Mapping[str, Any]) -> RoutingShape | None:
    """Reads the routing of a Hugging Face model from its config.json; None for a dense model.

    Covers all keys by which the families say which layers route: `decoder_sparse_step` with `mlp_only_layers` (Qwen),
    `first_k_dense_replace` with `moe_layer_freq` (DeepSeek, Kimi), `mlp_layer_types` (GLM).
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
    """Decodes SGLang's choices, base64 of a little-endian array, to int32 [tokens, layers, top_k].

    SGLang may send one token more, which is dropped. Raises ValueError, "`what` N bytes … `unit`", for another size.
    """
    try:
        raw = pybase64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{what} text that is not base64: {error}") from error
    row_bytes = layers * top_k * 4
    rows, rest = divmod(len(raw), row_bytes)
    if rest or rows not in (tokens, tokens + 1):
        raise ValueError(
            f"{what} {len(raw)} bytes; {tokens} tokens x {layers} layers x {top_k} {unit} x 4 bytes are "
            f"{tokens * row_bytes} (or one token more)"
        )
    return np.frombuffer(raw, dtype="<i4").reshape(rows, layers, top_k)[:tokens]


def decode_routed_experts(encoded: str, shape: RoutingShape, tokens: int) -> np.ndarray:
    """Decodes SGLang's `routed_experts` to uint8 [tokens, MoE layers, entry].

    `encoded` is base64 of little-endian int32 [tokens or tokens + 1, all layers, top_k]. If the engine ran the last
    token through the model too, there is one row too many, which is dropped. Where the engine has recorded nothing
    (-1, or the zeros of its buffer), the entry is `UNKNOWN`. Raises ValueError if the size or a value does not fit the
    model.
    """
    routing = decode_rows(encoded, "routed experts hold", "experts", tokens, shape.layers, shape.top_k)
    routing = routing[:, list(shape.moe_layers)]
    if routing.size and not (routing.min() >= -1 and routing.max() < shape.experts):
        raise ValueError(
            f"routed experts reach from {routing.min()} to {routing.max()}; "
            f"the model has {shape.experts} experts, numbered from 0"
        )
    entries = pack(routing, shape.experts)
    entries[_unwritten(routing)] = UNKNOWN
    return entries


def _unwritten(routing: np.ndarray) -> np.ndarray:
    """Where a routing [tokens, layers, K] holds no K different experts: bool [tokens, layers]."""
    if routing.shape[-1] == 1:
        return routing[..., 0] < 0
    return (routing[..., 0] < 0) | (routing[..., 0] == routing[..., 1])
