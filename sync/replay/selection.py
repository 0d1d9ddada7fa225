"""Sparse attention's choices in few bytes: for each token and layer the K positions that its indexer chose
(DeepSeek-V3.2, GLM-5), of which attention needs the set alone. Layers that share another's choice (GLM-5.2) have none.

A token at position p chooses among p + 1. Up to K of them it takes all, which takes no byte; behind that, one bit for
each or K indices of 16 or 24 bits, whichever is less: so a token's bytes follow from its position, and layers and
tokens are cut out without a table. An array is uint8 [layers that choose, bytes of tokens 0 .. n-1]. Of 32 Ki tokens
with K = 2048 that is 2 kB per token and layer, a quarter of SGLang's int32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verst.sync.replay.routing import decode_rows

_ROWS = 1024  # tokens that are unpacked at once


@dataclass(frozen=True)
class SelectionShape:
    """What a model's sparse attention chooses."""

    sources: tuple[int, ...]  # of each layer the one whose choice it attends to, its own or an earlier one's
    top_k: int

    @property
    def choosing(self) -> list[int]:
        """The layers with a choice of their own, ascending."""
        return sorted(set(self.sources))


def selection_shape(config: Mapping[str, Any]) -> SelectionShape | None:
    """From a Hugging Face config.json; None for a model whose attention chooses nothing. Raises ValueError as
    `choice_sources` does."""
    config = config.get("text_config") or config
    if not config.get("index_topk") or not config.get("index_n_heads"):
        return None
    return SelectionShape(choice_sources(config), config["index_topk"])


def choice_sources(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of each layer the one whose choice it attends to: itself, or the last before it that chooses (IndexCache,
    arXiv:2603.12201).

    SGLang reads `index_topk_pattern`, else `index_topk_freq` and `index_skip_topk_offset` (`dsa_layer_skips_topk`);
    transformers reads `indexer_types` before these. Raises ValueError where the two would read different layers.
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
            "config.json: layer 0 shares a choice, and no layer is before it; it must choose itself"
        )
    sources: list[int] = []
    for layer, shared in enumerate(shares):
        sources.append(sources[-1] if shared else layer)
    return tuple(sources)


def _places(values: Sequence[Any], wanted: Any) -> list[int]:
    return [i for i, value in enumerate(values) if value == wanted]


def _sharing(config: Mapping[str, Any], layers: int) -> list[bool]:
    """Which layers share, as SGLang reads it."""
    pattern = config.get("index_topk_pattern")
    if pattern is None:
        frequency = config.get("index_topk_freq") or 1
        offset = config.get("index_skip_topk_offset")
        offset = 2 if offset is None else offset
        return [max(i - offset + 1, 0) % frequency != 0 for i in range(layers)]
    # Of a list transformers understands "shared" and SGLang "S".
    if not isinstance(pattern, str) or len(pattern) < layers or set(pattern) - {"F", "S"}:
        raise ValueError(
            f"config.json: index_topk_pattern = {pattern!r} should be a string of F and S, one for each of the "
            f"{layers} layers"
        )
    return [kind == "S" for kind in pattern[:layers]]


def index_bytes(positions: np.ndarray) -> np.ndarray:
    """Of one index of tokens at these positions."""
    return np.where(positions < 1 << 16, 2, 3)


def sizes(positions: np.ndarray, top_k: int) -> np.ndarray:
    """Bytes of tokens at these positions in one layer, int64."""
    bits = -(-(positions + 1) // 8)
    return np.where(positions < top_k, 0, np.minimum(bits, top_k * index_bytes(positions)))


def as_bits(positions: np.ndarray, top_k: int) -> np.ndarray:
    """Which of them have one bit for each candidate."""
    return -(-(positions + 1) // 8) <= top_k * index_bytes(positions)


def offsets(tokens: int, top_k: int) -> np.ndarray:
    """int64 [tokens + 1]: where each token's bytes begin, and where the last one's end."""
    return np.concatenate([[0], np.cumsum(sizes(np.arange(tokens), top_k))])


def pack(indices: np.ndarray, top_k: int) -> np.ndarray:
    """Choices int [tokens, layers, <= K], -1 for none -> uint8 [layers, bytes]. Tokens are a sequence's first ones."""
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
            chosen[rows, np.where(mine < 0, token + 1, mine)] = True  # none: a column of its own
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
    """One layer's bytes, uint8, of tokens at `positions`, one after another -> int32 [tokens, K] on the same device, -1
    where there are fewer."""
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
    # The chosen columns first, in their order.
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
    """SGLang's `indexer_topk` as uint8 [layers that choose, bytes].

    `encoded` is base64 of little-endian int32 [tokens or tokens + 1, all layers, K], positions in the sequence and -1:
    a row too many comes as with routed experts. A layer that shares another's choice comes with a copy of it. Raises
    ValueError when size or values do not fit.
    """
    layers = len(shape.sources)
    indices = decode_rows(encoded, "indexer top-k holds", "positions", tokens, layers, shape.top_k)
    for layer in shape.choosing:
        _require_choices(indices[:, layer], layer, shape.top_k)
    _require_copies(indices, shape)
    return pack(indices[:, shape.choosing], shape.top_k)


def _require_choices(indices: np.ndarray, layer: int, top_k: int) -> None:
    """A token behind the first K chooses K positions, its own or earlier ones: int32 [tokens, K]."""
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
    """What is kept of a layer that shares is the choice of its source: it must have been told that one. The first K
    tokens take all, and SGLang, which runs no indexer for them, may tell anything."""
    late = indices[shape.top_k :]
    for layer, source in enumerate(shape.sources):
        wrong = (late[:, layer] != late[:, source]).any(-1) if layer != source else np.zeros(0, bool)
        if wrong.any():
            token = int(np.flatnonzero(wrong)[0]) + shape.top_k
            raise ValueError(
                f"indexer top-k of token {token} in layer {layer} is not that of layer {source}, whose choice it "
                "shares by config.json: the engine reads another sharing of layers"
            )
