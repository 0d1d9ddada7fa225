"""What the checks of a recipe say, as the user reads it."""

from __future__ import annotations

from pathlib import Path

from tests.launcher.recipes_for_tests import MACHINE
from verst.launcher.check.check import check_recipe
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.load import parse_recipe


def check_lines(*overrides: str, machine: Machine | None = MACHINE) -> list[str]:
    """What all checks have to say but Megatron's and SGLang's parsers, which take seconds."""
    file, recipe, faults = parse_recipe(Path("recipe.yaml"), overrides)
    assert recipe is not None
    assert faults == []
    return [file.line(fault) for fault in check_recipe(recipe, machine)]
