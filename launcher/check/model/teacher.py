"""Checks the teacher of `algorithm.teacher`: a model of its own that the trainer's ranks hold beside the policy.

Imports torch, as `parsers.py` does, which calls it.
"""

from __future__ import annotations

from verst.launcher.check.model.description import description_if_any
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.sync.hf.fit import fit_faults
from verst.sync.hf.headers import stored_tensors
from verst.sync.hf.model_config import model_of

PLACE = "algorithm.teacher.path"


def teacher_faults(recipe: Recipe, world: int, vocabulary: int) -> list[Fault]:
    """Why the trainer cannot hold the teacher; empty if it can, or if there is none.

    `world` is the number of trainer ranks, `vocabulary` the number of the policy's token ids. `model_files.py` tells of
    a folder that is not there.
    """
    teacher = recipe.algorithm.teacher
    folder = None if teacher is None else model_folder(teacher.path)
    if teacher is None or folder is None:
        return []

    def fault(why: str) -> list[Fault]:
        return [Fault(PLACE, f"is {teacher.path!r}: {why}")]

    description = description_if_any(teacher.path)
    if description is None:
        return fault("it has no config.json that can be read")
    from verst.runtime.trainer.model.arguments import check

    try:
        family, config = model_of(description)
        shape = family.megatron_args(config)
        misfits = fit_faults(folder, stored_tensors(folder), family, config, pieces=64)
    except (ValueError, KeyError, OSError) as error:
        return fault(str(error))
    if misfits:
        return fault("its weights do not fit its config.json:" + "".join(f"\n    {one}" for one in misfits))
    known = int(config["vocab_size"])
    if known < vocabulary:
        return fault(
            f"it has {known} token ids and model.path {vocabulary}, so it knows nothing of some of them; it must have "
            "the same tokenizer"
        )
    lines = check(recipe.trainer.megatron, world, shape, dtype=recipe.model.dtype)
    return fault(f"it does not fit trainer.megatron: {'; '.join(lines)}") if lines else []
