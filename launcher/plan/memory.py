"""Estimates the memory of weights, gradients and optimizer state per rank, which is known before the run.

Activations, the KV cache (whose size SGLang derives from `mem-fraction-static`) and workspaces are not
included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from verst.launcher.plan.model_source import model_folder
from verst.launcher.plan.parallelism import Parallelism, argument, attention_groups, engine_ranks
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.algorithms.references import needs_reference
from verst.sync.hf.headers import stored_tensors

_OUTPUT = "lm_head.weight"
_BYTES = {"float32": 4, "bfloat16": 2}
_WHOLE_IN_A_GROUP = (
    ".self_attn.",
    "embed_tokens.",
)  # tensors that each data-parallel attention group has in full


@dataclass(frozen=True)
class MemoryEstimate:
    """The estimate for one run."""

    parameters: int  # number of parameters of the whole model
    trainer_rank: int  # bytes per trainer rank
    engine_rank: int  # bytes per engine rank


@dataclass(frozen=True)
class _Parameters:
    """The number of parameters in a model folder, by kind, and their size on disk."""

    dense: int  # all parameters outside experts
    experts: int
    attention: int  # the part of `dense` that is attention and embedding
    nbytes: int  # of all parameters, as stored


def estimate_memory(recipe: Recipe, model: Path, grid: Parallelism) -> MemoryEstimate | None:
    """Estimates the memory of a run of the model in a local folder. None if the folder has no safetensors files.

    - Every tensor counts as split over TP x PP, and experts over EP too, as Megatron splits all large tensors.
    - Gradients are fp32. Adam keeps two fp32 moments and, for a bfloat16 model, an fp32 master copy. The
      distributed optimizer spreads moments and master copy over the data-parallel ranks.
    - A critic counts as a second model in training. It has a value head in place of the output layer, which is no
      large part.
    - A reward model has one row of weights, which is not counted, in place of its output layer.
    - With data-parallel attention, each group of an engine has a full copy of attention and embedding.
    - A teacher counts as the weights alone, split in the same way.
    - If the engines serve another format, they hold the tensors of `rollout.model_path` as stored. With the
      transport `reshard`, the trainer ranks also hold the converted tensors, spread evenly over all ranks.
    """
    counted = _parameters(model, scored=recipe.algorithm.trains_reward_model)
    if counted is None:
        return None
    width = _BYTES[recipe.model.dtype]
    held = counted.dense / (grid.tp * grid.pp) + counted.experts / (grid.etp * grid.ep * grid.pp)
    optimizer = 8 + (4 if width == 2 else 0)
    spread = grid.dp if argument(recipe.trainer.megatron, "use-distributed-optimizer") is True else 1
    reference = width if needs_reference(recipe.algorithm) else 0
    models = 1 if recipe.algorithm.critic is None else 2
    parameters = counted.dense + counted.experts
    teacher = None if recipe.algorithm.teacher is None else model_folder(recipe.algorithm.teacher.path)
    teaching = None if teacher is None else _parameters(teacher)
    taught = 0.0
    if teaching is not None:
        taught = width * (
            teaching.dense / (grid.tp * grid.pp) + teaching.experts / (grid.etp * grid.ep * grid.pp)
        )
    again = counted.attention * (attention_groups(recipe.rollout.sglang) - 1) * width
    served, converted = parameters * width, 0
    other = None if recipe.rollout.model_path is None else model_folder(recipe.rollout.model_path)
    if other is not None and (stored := _parameters(other)) is not None:
        served = stored.nbytes
        converted = stored.nbytes if recipe.weights.transport == "reshard" else 0
    return MemoryEstimate(
        parameters=parameters,
        trainer_rank=round(
            held * (models * (width + 4 + optimizer / spread) + reference) + taught + converted / grid.world
        ),
        engine_rank=round((served + again) / engine_ranks(recipe.rollout.sglang)),
    )


def parameters_of(model: Path, *, scored: bool = False) -> tuple[int, int] | None:
    """The number of parameters outside and inside experts. None if the folder has no safetensors files.

    `scored`: of the reward model that is made of the folder.
    """
    counted = _parameters(model, scored=scored)
    return None if counted is None else (counted.dense, counted.experts)


def _parameters(model: Path, *, scored: bool = False) -> _Parameters | None:
    """Counts the parameters of a model folder, reading only its safetensors headers. None if there are none.

    `scored`: without the output layer, which a reward model does not have.
    """
    dense = experts = attention = nbytes = 0
    try:
        stored = stored_tensors(model)
    except (ValueError, OSError):  # `launcher/check/model/model_files.py` reports it
        return None
    for name, tensor in stored.items():
        if scored and name == _OUTPUT:
            continue
        nbytes += tensor.end - tensor.begin
        count = math.prod(tensor.shape)
        if ".experts." in name:
            experts += count
        else:
            dense += count
            attention += count * any(kind in name for kind in _WHOLE_IN_A_GROUP)
    return _Parameters(dense, experts, attention, nbytes) if nbytes else None


def in_words(count: float) -> str:
    """Formats a number of bytes for people: "1.9 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
