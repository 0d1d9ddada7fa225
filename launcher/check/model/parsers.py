"""The checks that import torch: Megatron's and SGLang's own argument parsers, the models, and the engines' format.

`arguments.py` starts this module as a program, so that the `verst` command itself never imports torch. An answer may be
kept, so what goes wrong on the machine while a file is read is no answer: it ends the program.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping

import yaml

from verst.launcher.check.model.description import description_if_any
from verst.launcher.plan.model_source import model_folder
from verst.launcher.plan.parallelism import megatron_parallelism
from verst.launcher.plan.plan import world_size
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.messages.model_config import ArgumentValue
from verst.sync.layout.mapping import Family, HfConfig


def _megatron(recipe: Recipe) -> list[Fault]:
    from verst.launcher.check.model.served_model import served_model_faults
    from verst.sync.hf.model_config import model_of
    from verst.sync.layout.scalar_head import with_score_head

    description = description_if_any(recipe.model.path)
    if description is None:
        return _without_a_model(recipe)
    try:
        family, config = model_of(description, recipe.model.family)
    except (ValueError, KeyError) as error:
        return [Fault("model.path", f"is {recipe.model.path!r}: {error}")]
    if recipe.algorithm.trains_reward_model:
        try:
            with_score_head(family)
        except ValueError as error:
            return [Fault("model.path", f"is {recipe.model.path!r}: {error}")]
    faults = _of_model(recipe, description, family, config)
    return [*served_model_faults(recipe, family, config), *faults]


def _without_a_model(recipe: Recipe) -> list[Fault]:
    """Another check reports the missing model. Faults of single options show without its true sizes."""
    from verst.runtime.trainer.model.arguments import check

    shape: dict[str, ArgumentValue] = {"num-layers": 64, "hidden-size": 4096, "num-attention-heads": 64}
    faults = _placed("trainer.megatron", recipe.trainer.megatron, check(recipe.trainer.megatron, 1, shape))
    return [fault for fault in faults if fault.place != "trainer.megatron"]


def _of_model(recipe: Recipe, description: HfConfig, family: Family, config: HfConfig) -> list[Fault]:
    """The faults of the trained model, or if it has none, of Megatron's arguments for it."""
    try:
        shape = family.megatron_args(config)
        if fault := family.engine_fault(description):
            return [Fault("model.path", f"is {recipe.model.path!r}: {fault}")]
    except (ValueError, KeyError) as error:
        return [Fault("model.path", f"is {recipe.model.path!r}: {error}")]
    if misfits := _misfits(recipe, family, config):
        return misfits
    from verst.runtime.trainer.model.arguments import check

    grid = megatron_parallelism(recipe.trainer.megatron, world_size(recipe))
    # Another check reports sizes that do not divide. A world size that fits lets the parser find the rest.
    fitting = math.lcm(grid.tp * grid.cp * grid.pp, grid.etp * grid.ep * grid.pp)
    world = fitting if grid.faults() else grid.world
    lines = check(
        recipe.trainer.megatron,
        world,
        shape,
        dtype=recipe.model.dtype,
        train_steps=recipe.algorithm.updates,
    )
    if lines:
        return _placed("trainer.megatron", recipe.trainer.megatron, lines)
    if (critic := recipe.algorithm.critic) is not None:
        lines = check(
            critic.arguments(recipe.trainer.megatron),
            world,
            shape,
            dtype=recipe.model.dtype,
            train_steps=recipe.algorithm.critic_updates,
        )
        if lines:
            return _placed("algorithm.critic.optimizer", critic.optimizer, lines)
    from verst.launcher.check.model.teacher import teacher_faults

    return teacher_faults(recipe, world, int(config["vocab_size"]))


def _misfits(recipe: Recipe, family: Family, config: HfConfig) -> list[Fault]:
    """The tensors in the model's folder that are not those of the family. Another check reports damaged files."""
    from verst.sync.hf.fit import fit_faults
    from verst.sync.hf.headers import stored_tensors

    folder = model_folder(recipe.model.path)
    try:
        faults = (
            [] if folder is None else fit_faults(folder, stored_tensors(folder), family, config, pieces=64)
        )
    except ValueError:
        return []
    shown = "".join(f"\n    {fault}" for fault in faults)
    return (
        [Fault("model.path", f"is {recipe.model.path!r}: its weights do not fit its config.json:{shown}")]
        if faults
        else []
    )


def _sglang(recipe: Recipe) -> list[Fault]:
    from verst.runtime.rollout.engine.arguments import check

    return _placed("rollout.sglang", recipe.rollout.sglang, check(recipe.rollout.sglang))


def _format(recipe: Recipe) -> list[Fault]:
    from verst.launcher.check.model.engine_format import engine_format_faults

    return list(engine_format_faults(recipe))


def _placed(section: str, arguments: Mapping[str, object], lines: list[str]) -> list[Fault]:
    """Makes faults of a parser's lines. A line that begins with a key ("lr: needs a value") is a fault of that key."""
    faults = []
    for line in lines:
        name, colon, rest = line.partition(": ")
        own = bool(colon) and name in arguments
        faults.append(Fault(f"{section}.{name}", rest) if own else Fault(section, line))
    return faults


_PARSERS: dict[str, Callable[[Recipe], list[Fault]]] = {
    "megatron": _megatron,
    "sglang": _sglang,
    "format": _format,
}


# Packages that Megatron and SGLang import where they are installed, for logging and for kernels that no argument of a
# recipe depends on. Together they take a third of the time of a check.
_NOT_NEEDED = {
    "megatron": ("flashinfer", "wandb", "cutlass", "mlflow", "sklearn", "scipy", "torchvision", "torchao"),
    "sglang": ("flashinfer", "wandb", "cutlass", "sklearn", "scipy"),
}


def main() -> None:
    """Checks the recipe on stdin with the parser named on the command line, and prints its faults as JSON."""
    for package in _NOT_NEEDED.get(sys.argv[1], ()):
        sys.modules[package] = None  # type: ignore[assignment]  # importing it fails at once
    recipe = Recipe.model_validate(yaml.safe_load(sys.stdin))
    faults = _PARSERS[sys.argv[1]](recipe)
    print("\n" + json.dumps([{"place": fault.place, "message": fault.message} for fault in faults]))


if __name__ == "__main__":
    main()
