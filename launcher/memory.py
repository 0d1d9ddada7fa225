"""Bytes that weights, gradients and optimizer state take per rank: the part of memory that is known beforehand.

Activations, the KV cache (SGLang takes what `mem-fraction-static` leaves it) and workspaces come on top.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from verst.launcher.parallelism import Parallelism, argument, attention_groups, engine_ranks
from verst.launcher.recipe import Recipe

_BYTES = {"float32": 4, "bfloat16": 2}
_WHOLE_IN_A_GROUP = (".self_attn.", "embed_tokens.")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per process."""

    parameters: int  # of the whole model
    trainer_rank: int
    engine_rank: int


def estimate_memory(recipe: Recipe, model: Path, grid: Parallelism) -> MemoryEstimate | None:
    """The estimate for a local model folder; None where its safetensors headers are not at hand.

    Every tensor counts as split over TP x PP, experts also over EP (Megatron splits all large ones so).
    Adam keeps two fp32 moments and, under bfloat16, an fp32 master copy; gradients are fp32. The
    distributed optimizer spreads moments and master copy over the data-parallel ranks. Of an engine with data-parallel
    attention each of the groups has attention and embedding whole.
    """
    counted = _parameters(model)
    if counted is None:
        return None
    dense, experts, attention = counted
    width = _BYTES[recipe.model.dtype]
    held = dense / (grid.tp * grid.pp) + experts / (grid.etp * grid.ep * grid.pp)
    optimizer = 8 + (4 if width == 2 else 0)
    spread = grid.dp if argument(recipe.trainer.megatron, "use-distributed-optimizer") is True else 1
    reference = width if recipe.algorithm.kl_coef > 0 else 0
    return MemoryEstimate(
        parameters=dense + experts,
        trainer_rank=round(held * (width + 4 + optimizer / spread + reference)),
        engine_rank=round(
            (dense + experts + attention * (attention_groups(recipe.rollout.sglang) - 1))
            * width
            / engine_ranks(recipe.rollout.sglang)
        ),
    )


def _parameters(model: Path) -> tuple[int, int, int] | None:
    """Parameters outside and inside of experts, and those of the first that are attention's or the embedding's, from
    the safetensors headers alone."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        return None
    dense = experts = attention = 0
    for file in files:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            count = 1
            for extent in tensor["shape"]:
                count *= extent
            if ".experts." in name:
                experts += count
            else:
                dense += count
                attention += count * any(kind in name for kind in _WHOLE_IN_A_GROUP)
    return dense, experts, attention


def in_words(count: float) -> str:
    """Bytes as a person reads them: "1.9 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
