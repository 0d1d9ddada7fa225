"""Makes the plan of an evaluation without training: engines, and the controller that gives them prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.plan import make_plan, world_size
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.run.plan import Node, Plan

_CONTROLLER = ("verst.runtime.controller", "verst.runtime.controller.evaluate")


def evaluation_plan(recipe: Recipe, folder: Path, machine: Machine, python_path: str) -> Plan:
    """The plan of a run of this recipe without its trainer ranks and store shards: the engines get all GPUs."""
    shifted = replace(machine, gpus=("-",) * world_size(recipe) + machine.gpus) if machine.gpus else machine
    whole = make_plan(recipe, folder, shifted, python_path)
    first = whole.groups["trainer"][0]
    controller = next(process for process in first.processes if process.role == "controller")
    argv = [_CONTROLLER[1] if word == _CONTROLLER[0] else word for word in controller.argv]
    node = Node(processes=[msgspec.structs.replace(controller, argv=argv)])
    return msgspec.structs.replace(whole, groups={"controller": [node], "rollout": whole.groups["rollout"]})
