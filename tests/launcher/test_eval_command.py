"""`verst eval`: what it refuses, where its results go, and the table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.models.evaluate import evaluate, free, table
from verst.launcher.recipe.faults import RecipeError, UserError


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def refused(source: Path, *overrides: str, **options: object) -> str:
    given = {"recipe_path": None, "data": None, "step": None, "best": False, "as_json": False} | options
    with pytest.raises(UserError) as caught:
        evaluate(source, list(overrides), **given)  # type: ignore[arg-type]
    return str(caught.value)


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    made = model(tmp_path / "made")
    recipe = write_recipe(tmp_path)
    assert "name a recipe for its engines and data, --recipe RECIPE" in refused(made)
    assert "--step and --best are for a run" in refused(made, recipe_path=recipe, step=3)
    assert "has no data.eval: name held-out prompts with --data FILE" in refused(
        made, "data.eval=null", recipe_path=recipe
    )
    told = refused(made, recipe_path=recipe, data=tmp_path / "gone.jsonl")
    assert "data.eval.path: is" in told
    assert "gone.jsonl" in told
    assert issubclass(RecipeError, UserError)


def test_a_second_evaluation_has_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "step-000100").mkdir()
    (tmp_path / "step-000100-2").mkdir()
    assert free(tmp_path / "step-000100").name == "step-000100-3"
    assert free(tmp_path / "best").name == "best"


def test_the_table_has_each_figure_with_its_interval() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(table({"math": {"reward": 0.25, "reward_ci": 0.0625, "truncated": 0.5, "samples": 400}}))
    rows = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert rows[1] == ["math", "reward", "0.25", "±", "0.0625"]
    assert rows[2:] == [["math", "truncated", "0.5"], ["math", "samples", "400"]]
