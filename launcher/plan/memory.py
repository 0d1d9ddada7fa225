"""Bytes that weights, gradients and optimizer state take per rank: the part of memory that is known beforehand.

Activations, the KV cache (SGLang takes what `mem-fraction-static` leaves it) and workspaces come on top.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verst.launcher.plan.model_source import model_folder
from verst.launcher.plan.parallelism import Parallelism, argument, attention_groups, engine_ranks
from verst.launcher.recipe.recipe import Recipe

_BYTES = {"float32": 4, "bfloat16": 2}
_WHOLE_IN_A_GROUP = (".self_attn.", "embed_tokens.")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process."""

    parameters: int  # of the whole model
    trainer_rank: int
    engine_rank: int


@dataclass(frozen=True)
class _Parameters:
    """Of a model folder."""

    dense: int
    experts: int
    attention: int  # of the dense ones: those of attention and of the embedding
    nbytes: int  # of all, as they are stored


def estimate_memory(recipe: Recipe, model: Path, grid: Parallelism) -> MemoryEstimate | None:
    """The estimate for a local model folder; None where its safetensors headers are not at hand.

    Every tensor counts as split over TP x PP, experts also over EP (Megatron splits all large ones so).
    Adam keeps two fp32 moments and, under bfloat16, an fp32 master copy; gradients are fp32. The
    distributed optimizer spreads moments and master copy over the data-parallel ranks. Of an engine with data-parallel
    attention each of the groups has attention and embedding whole. Engines in another format hold what is stored in
    `rollout.model_path`, and with `reshard` trainer ranks share what they convert to it.
    """
    counted = _parameters(model)
    if counted is None:
        return None
    width = _BYTES[recipe.model.dtype]
    held = counted.dense / (grid.tp * grid.pp) + counted.experts / (grid.etp * grid.ep * grid.pp)
    optimizer = 8 + (4 if width == 2 else 0)
    spread = grid.dp if argument(recipe.trainer.megatron, "use-distributed-optimizer") is True else 1
    reference = width if recipe.algorithm.kl_coef > 0 else 0
    parameters = counted.dense + counted.experts
    again = counted.attention * (attention_groups(recipe.rollout.sglang) - 1) * width
    served, converted = parameters * width, 0
    other = None if recipe.rollout.model_path is None else model_folder(recipe.rollout.model_path)
    if other is not None and (stored := _parameters(other)) is not None:
        served = stored.nbytes
        converted = stored.nbytes if recipe.weights.transport == "reshard" else 0
    return MemoryEstimate(
        parameters=parameters,
        trainer_rank=round(held * (width + 4 + optimizer / spread + reference) + converted / grid.world),
        engine_rank=round((served + again) / engine_ranks(recipe.rollout.sglang)),
    )


def _parameters(model: Path) -> _Parameters | None:
    """From the safetensors headers alone."""
    dense = experts = attention = nbytes = 0
    for name, tensor in _tensors(model):
        begin, end = tensor["data_offsets"]
        nbytes += end - begin
        count = math.prod(tensor["shape"])
        if ".experts." in name:
            experts += count
        else:
            dense += count
            attention += count * any(kind in name for kind in _WHOLE_IN_A_GROUP)
    return _Parameters(dense, experts, attention, nbytes) if nbytes else None


def _tensors(model: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        yield from ((name, tensor) for name, tensor in header.items() if name != "__metadata__")


def in_words(count: float) -> str:
    """Bytes as a person reads them: "1.9 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
