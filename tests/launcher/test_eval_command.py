"""`verst eval`: what it refuses, where its results go, and the table."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.models.evaluate import _for_engines, evaluate, free, table
from verst.launcher.plan.evaluation import evaluation_plan
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.faults import RecipeError, UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.prepare import prepare_run, with_absolute_paths
from verst.runtime.run.folder import RunFolder


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
    assert "--step and --best name two models" in refused(tmp_path / "run", step=3, best=True)


def test_a_recipe_without_engines_is_refused_and_another_one_asked_for(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    sft = "stages: [{kind: sft, steps: 2, data: {path: train.jsonl}}]"
    alone = tmp_path / "sft.yaml"
    alone.write_text(f"name: sft\nmodel: {{path: model}}\ndata: {{}}\nalgorithm: {{{sft}}}\n")
    told = refused(model(tmp_path / "made"), recipe_path=alone, data=tmp_path / "train.jsonl")
    assert "generates nothing, so it says nothing of engines and rewards" in told


def test_the_keys_of_a_file_of_its_own_may_be_overridden(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1 + 1 =", "label": "2"}\n')
    made = model(tmp_path / "made")
    assert "no column 'prompt'" in refused(made, recipe_path=recipe, data=rows)
    told = refused(made, "data.eval.prompt_key=asked", recipe_path=recipe, data=rows)
    assert "no column 'asked'" in told


def test_more_engines_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines beyond the last GPU would have none, and run on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    recipe = write_recipe(tmp_path)
    told = refused(
        model(tmp_path / "made"),
        "rollout.engines=2",
        "rollout.sglang={tp-size: 2}",
        recipe_path=recipe,
        data=tmp_path / "train.jsonl",
    )
    assert "rollout.engines: is 2, whose engines need 4 GPUs, but this machine has 2" in told


def test_a_run_on_a_recording_is_evaluated_with_engines(tmp_path: Path) -> None:
    """The recipe of such a run starts none; that of the stages before the policy may name files that are gone."""
    stages = "[{kind: sft, epochs: 2, data: {path: gone.jsonl}}, {kind: policy}]"
    recipe = load_recipe(write_recipe(tmp_path), ["record.source=elsewhere", f"algorithm.stages={stages}"])
    made = _for_engines(recipe, RunFolder(tmp_path / "evaluations/best"), tmp_path / "model")
    plan = evaluation_plan(with_absolute_paths(made), tmp_path, Machine(cores=2), "")
    assert [process.role for node in plan.groups["rollout"] for process in node.processes] == ["rollout"]
    assert type(made).model_validate(made.resolved()).starts_engines


def test_a_model_that_is_not_there_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = prepare_run(load_recipe(write_recipe(tmp_path)), Machine(cores=2))
    monkeypatch.syspath_prepend(tmp_path)
    assert "has no export and no checkpoint yet" in refused(folder.root, data=tmp_path / "train.jsonl")
    assert not list((folder.root / "evaluations").iterdir())


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
