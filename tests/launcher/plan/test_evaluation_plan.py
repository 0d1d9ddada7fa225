"""An evaluation without training has its controller and the engines, which get all GPUs."""

from __future__ import annotations

from pathlib import Path

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.evaluation import evaluation_plan
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.load import load_recipe


def test_the_engines_get_the_gpus_that_the_trainer_would_have(tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path),
        ["rollout.engines=2", "trainer.ranks_per_node=2", "rollout.sglang={tp-size: 2}"],
    )
    for gpus, wanted in (((), ["", ""]), (("4", "5", "6", "7"), ["4,5", "6,7"])):
        plan = evaluation_plan(recipe, Path("/runs/it"), Machine(cores=8, gpus=gpus), "/hooks")
        found = {p.name: p for nodes in plan.groups.values() for node in nodes for p in node.processes}
        engines = [found[f"rollout-{n}"] for n in (0, 1)]
        assert [p.env["CUDA_VISIBLE_DEVICES"] for p in engines] == wanted
        assert {p.role for p in found.values()} - {"gpu_use"} == {"controller", "rollout"}
        controller = found["controller-0"]
        assert controller.argv[1:3] == ["-m", "verst.runtime.controller.evaluate"]
        assert (controller.on_exit, controller.env["PYTHONPATH"]) == ("ends_run", "/hooks")
