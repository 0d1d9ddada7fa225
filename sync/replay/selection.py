"""Sparse attention's data: the positions that each layer's indexer chose for each token, packed into few bytes.

An indexer (DeepSeek-V3.2, GLM-5) chooses K positions for each token; attention only needs them as a set. Layers that
share another layer's choice (GLM-5.2) have none of their own.

A token at position p chooses among p + 1 positions. If these are at most K, it takes all of them, which needs no bytes.
Beyond that, a choice is stored as one bit for each position or as K indices of 16 or 24 bits, whichever is smaller.
So a token's size follows from its position, and layers and tokens can be sliced without a table. An array is uint8
[layers that choose, bytes of tokens 0 .. n-1]. For 32 Ki tokens and K = 2048 that is 2 kB per token and layer, a
quarter of SGLang's int32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verst.sync.replay.routing import decode_rows

_ROWS = 1024  # tokens that are unpacked at a time


@dataclass(frozen=True)
class SelectionShape:
    """The layers of a model's sparse attention, and the number of positions that they choose."""

    sources: tuple[int, ...]  # for each layer the layer whose choice it uses: itself or an earlier one
    top_k: int

    @property
    def choosing(self) -> list[int]:
        """The layers with a choice of their own, ascending."""
        return sorted(set(self.sources))


def selection_shape(config: Mapping[str, Any]) -> SelectionShape | None:
    """Reads the shape from a Hugging Face config.json; None for a model without sparse attention.

    Raises the same ValueErrors as `choice_sources`.
    """
    config = config.get("text_config") or config
    if not config.get("index_topk") or not config.get("index_n_heads"):
        return None
    return SelectionShape(choice_sources(config), config["index_topk"])


def choice_sources(config: Mapping[str, Any]) -> tuple[int, ...]:
    """For each layer the layer whose choice it uses: itself, or the last one before it that chooses.

    See IndexCache, arXiv:2603.12201. SGLang reads `index_topk_pattern`, or else `index_topk_freq` and
    `index_skip_topk_offset` (`dsa_layer_skips_topk`); transformers prefers `indexer_types` to these. Raises ValueError
    if the two would let different layers share, or if layer 0 would share.
    """
    layers = config["num_hidden_layers"]
    shares, types = _sharing(config, layers), config.get("indexer_types")
    if types is not None and [kind == "shared" for kind in types[:layers]] != shares:
        raise ValueError(
            f"config.json: by indexer_types, which transformers reads, layers {_places(types, 'shared')} of "
            f"{len(types)} share a choice; by index_topk_pattern or index_topk_freq and index_skip_topk_offset, which "
            f"SGLang reads, layers {_places(shares, True)} of {layers}; they must be the same"
        )
    if shares[0]:
        raise ValueError(
            "config.json: layer 0 shares a choice, but there is no layer before it; it must choose itself"
        )
    sources: list[int] = []
    for layer, shared in enumerate(shares):
        sources.append(sources[-1] if shared else layer)
    return tuple(sources)


def _places(values: Sequence[Any], wanted: Any) -> list[int]:
    return [i for i, value in enumerate(values) if value == wanted]


def _sharing(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Which layers share another's choice, by SGLang's reading of config.json."""
    pattern = config.get("index_topk_pattern")
    if pattern is None:
        frequency = config.get("index_topk_freq") or 1
        offset = config.get("index_skip_topk_offset")
        offset = 2 if offset is None else offset
        return [max(i - offset + 1, 0) % frequency != 0 for i in range(layers)]
    # In a list, transformers looks for "shared" and SGLang for "S", so only a string means the same to both.
    if not isinstance(pattern, str) or len(pattern) < layers or set(pattern) - {"F", "S"}:
        raise ValueError(
            f"config.json: index_topk_pattern = {pattern!r} should be a string of F and S, one for each of the "
            f"{layers} layers"
        )
    return [kind == "S" for kind in pattern[:layers]]


def index_bytes(positions: np.ndarray) -> np.ndarray:
    """Bytes of one index in the choices of tokens at these positions."""
    return np.where(positions < 1 << 16, 2, 3)


def sizes(positions: np.ndarray, top_k: int) -> np.ndarray:
    """Bytes that the choices of tokens at these positions take in one layer, int64."""
    bits = -(-(positions + 1) // 8)
    return np.where(positions < top_k, 0, np.minimum(bits, top_k * index_bytes(positions)))


def as_bits(positions: np.ndarray, top_k: int) -> np.ndarray:
    """Which tokens' choices are stored as one bit for each candidate."""
    return -(-(positions + 1) // 8) <= top_k * index_bytes(positions)


def offsets(tokens: int, top_k: int) -> np.ndarray:
    """Where each token's bytes begin, and where the last token's end: int64 [tokens + 1]."""
    return np.concatenate([[0], np.cumsum(sizes(np.arange(tokens), top_k))])


def pack(indices: np.ndarray, top_k: int) -> np.ndarray:
    """Packs the choices of a sequence's first tokens, int [tokens, layers, <= K] with -1 for none, into uint8 [layers,
    bytes]."""
    tokens, layers, _ = indices.shape
    begin = offsets(tokens, top_k)
    packed = np.zeros((layers, begin[-1]), np.uint8)
    bits = as_bits(np.arange(tokens), top_k)
    rows = np.arange(layers)[:, None]
    for token in range(top_k, tokens):
        mine = indices[token]
        here = slice(begin[token], begin[token + 1])
        if bits[token]:
            chosen = np.zeros((layers, token + 2), bool)
            chosen[rows, np.where(mine < 0, token + 1, mine)] = (
                True  # -1 goes to a last column that is cut off
            )
            packed[:, here] = np.packbits(chosen[:, : token + 1], axis=-1, bitorder="little")
        else:
            known = np.full((layers, top_k), -1, np.int64)
            known[:, : mine.shape[-1]] = mine
            width = int(index_bytes(np.array(token)))
            packed[:, here] = (
                known.astype("<i4").view(np.uint8).reshape(layers, top_k, 4)[..., :width].reshape(layers, -1)
            )
    return packed


def unpack(entries: Tensor, positions: np.ndarray, top_k: int) -> Tensor:
    """Unpacks one layer's choices of the tokens at `positions`: uint8 bytes, one token after another.

    Returns int32 [tokens, K] on the same device, -1 where a token has fewer than K.
    """
    begin = np.concatenate([[0], np.cumsum(sizes(positions, top_k))])
    bits = as_bits(positions, top_k)
    found = torch.full((len(positions), top_k), -1, dtype=torch.int32, device=entries.device)
    early = positions < top_k
    every = torch.arange(top_k, device=entries.device, dtype=torch.int32)
    for some, read in ((early, None), (~early & bits, _from_bits), (~early & ~bits, _from_list)):
        places = np.flatnonzero(some)
        for rows in np.split(places, range(_ROWS, len(places), _ROWS)):
            where = torch.from_numpy(positions[rows]).to(entries.device)
            if read is None:
                mine = torch.where(every <= where[:, None], every, -1)
            else:
                mine = read(entries, torch.from_numpy(begin[rows]).to(entries.device), where, top_k)
            found[torch.from_numpy(rows).to(entries.device)] = mine
    return found


def _from_bits(entries: Tensor, begin: Tensor, positions: Tensor, top_k: int) -> Tensor:
    if not len(positions):
        return torch.empty((0, top_k), dtype=torch.int32, device=entries.device)
    widest = int(positions.max()) + 1
    columns = torch.arange(widest, device=entries.device)
    at = (begin[:, None] + columns // 8).clamp(max=len(entries) - 1)
    chosen = ((entries[at] >> (columns % 8).to(torch.uint8)) & 1).bool() & (columns <= positions[:, None])
    # The chosen columns, in ascending order.
    order, column = torch.where(chosen, widest - columns, 0).topk(min(top_k, widest), dim=1)
    return torch.where(order > 0, column, -1).to(torch.int32)


def _from_list(entries: Tensor, begin: Tensor, positions: Tensor, top_k: int) -> Tensor:
    width = torch.from_numpy(index_bytes(positions.cpu().numpy())).to(entries.device)[:, None]
    start = begin[:, None] + width * torch.arange(top_k, device=entries.device)
    value = torch.zeros(start.shape, dtype=torch.int32, device=entries.device)
    for byte in range(3):
        read = entries[(start + byte).clamp(max=max(0, len(entries) - 1))].int() << (8 * byte)
        value |= torch.where(byte < width, read, 0)
    return torch.where(value == (1 << (8 * width)) - 1, -1, value)


def decode_indexer_topk(encoded: str, shape: SelectionShape, tokens: int) -> np.ndarray:
    """Decodes SGLang's `indexer_topk` to uint8 [layers that choose, bytes].

    `encoded` is base64 of little-endian int32 [tokens or tokens + 1, all layers, K]: positions in the sequence, or -1.
    There may be one row too many, as with routed experts. SGLang sends a copy for a layer that shares another's choice.
    Raises ValueError if the size or the values do not fit the model.
    """
    layers = len(shape.sources)
    indices = decode_rows(encoded, "indexer top-k holds", "positions", tokens, layers, shape.top_k)
    for layer in shape.choosing:
        _require_choices(indices[:, layer], layer, shape.top_k)
    _require_copies(indices, shape)
    return pack(indices[:, shape.choosing], shape.top_k)


def _require_choices(indices: np.ndarray, layer: int, top_k: int) -> None:
    """Raises ValueError unless each token after the first K chooses K different positions up to its own.

    `indices` is int32 [tokens, K].
    """
    late = np.sort(indices[top_k:], axis=-1)
    own = np.arange(top_k, len(indices))
    right = (late[:, 0] >= 0) & (late[:, -1] <= own) & (np.diff(late, axis=-1) != 0).all(-1)
    if not right.all():
        token = int(np.flatnonzero(~right)[0])
        found = late[token]
        raise ValueError(
            f"indexer top-k of token {token + top_k} in layer {layer} reaches from {found[0]} to {found[-1]} and has "
            f"{len(set(found.tolist()))} different values; it should be {top_k} positions up to the token's own "
            "(SGLang gives slots of its cache unless SGLANG_DSA_FUSE_TOPK is false)"
        )


def _require_copies(indices: np.ndarray, shape: SelectionShape) -> None:
    """Raises ValueError if a layer that shares was sent another choice than its source's, since only that is kept.

    The first K tokens attend to all positions. SGLang runs no indexer for them and may send anything.
    """
    late = indices[shape.top_k :]
    for layer, source in enumerate(shape.sources):
        wrong = (late[:, layer] != late[:, source]).any(-1) if layer != source else np.zeros(0, bool)
        if wrong.any():
            token = int(np.flatnonzero(wrong)[0]) + shape.top_k
            raise ValueError(
                f"indexer top-k of token {token} in layer {layer} is not that of layer {source}, whose choice it "
                "shares by config.json: the engine lets other layers share"
            )
