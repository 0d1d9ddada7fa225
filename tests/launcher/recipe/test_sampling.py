"""What SGLang would refuse in every request, or obey to no use, is a fault of the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.recipe.load import parse_recipe

WRONG = {
    "rollout.sampling.top_k=0": "is 0: must be at least 1, or -1 for all tokens",
    "rollout.sampling.top_k=-2": "is -2: must be at least 1, or -1 for all tokens",
    "rollout.sampling.stop=[a, '']": "is ['a', '']: an empty string would end every answer after a token; leave it out",
    "rollout.sampling.temperature=.inf": "is inf, must be a finite number",
    "data.eval={path: train.jsonl, temperature: .nan}": "is nan, must be a finite number",
}


@pytest.mark.parametrize("override", WRONG)
def test_sampling_that_cannot_work_is_refused(tmp_path: Path, override: str) -> None:
    _, _, (fault,) = parse_recipe(write_recipe(tmp_path), (override,))
    assert fault.message == WRONG[override]


def test_what_sglang_takes_is_taken(tmp_path: Path) -> None:
    _, recipe, faults = parse_recipe(write_recipe(tmp_path), ("rollout.sampling={top_k: 5, stop: [x]}",))
    assert faults == []
    assert recipe is not None
    assert (recipe.rollout.sampling.top_k, recipe.rollout.sampling.stop) == (5, ["x"])
