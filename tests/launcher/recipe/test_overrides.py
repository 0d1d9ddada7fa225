"""Overrides and numbers mean what they say; the resolved recipe reads back as the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.launcher.recipes_for_tests import RECIPE, write_recipe
from verst.launcher.recipe.faults import RecipeError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path)


def test_values_are_yaml(here):
    recipe = load_recipe(
        here,
        [
            "trainer.megatron.lr=2e-6",
            "trainer.megatron.moe-layer-freq=[0, 1]",
            "trainer.megatron.sequence-parallel=true",
            "rollout.sampling.stop=['a b']",
            "algorithm.kl_coef=0.1",
            "checkpoint.async=true",
        ],
    )
    assert recipe.trainer.megatron == {"lr": 2e-6, "moe-layer-freq": [0, 1], "sequence-parallel": True}
    assert recipe.rollout.sampling.stop == ["a b"]
    assert recipe.algorithm.kl_coef == 0.1
    assert recipe.checkpoint.asynchronous is True


def test_the_last_override_of_a_key_counts(here):
    assert load_recipe(here, ["algorithm.steps=5", "algorithm.steps=7"]).algorithm.steps == 7


def test_a_section_is_taken_out_with_null(here):
    here.write_text(RECIPE.replace("data:\n", "data:\n  eval: {path: held.jsonl}\n"))
    assert load_recipe(here).data.eval is not None
    assert load_recipe(here, ["data.eval=null"]).data.eval is None


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-6", 1e-6), ("1E5", 1e5), (".5", 0.5), ("-3", -3), ("1.", 1.0), ("2e-06", 2e-6)],
)
def test_numbers_are_numbers(here, written, value):
    here.write_text(RECIPE.replace("1e-4", written))
    assert load_recipe(here).trainer.megatron["lr"] == value
    assert type(load_recipe(here).trainer.megatron["lr"]) is type(value)


def test_words_stay_strings(here):
    here.write_text(RECIPE.replace("lr: 1e-4", "a: on, b: no, c: 2024-01-01, d: e5"))
    assert load_recipe(here).trainer.megatron == {"a": "on", "b": "no", "c": "2024-01-01", "d": "e5"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps", "command line: override 'steps' must have the form a.dotted.key=value: `steps=VALUE`"),
        (
            "--trainer.megatron.lr=1e-6",
            "1 fault:\n  command line: override '--trainer.megatron.lr=1e-6' must have no dashes in front:"
            " `trainer.megatron.lr=1e-6`",
        ),
        (
            "--trainer.megatron.lr 1e-6",
            "1 fault:\n  command line: override '--trainer.megatron.lr' must have no dashes in front:"
            " `trainer.megatron.lr=1e-6`",
        ),
        ("trainer.megatron.lr 1e-6", "the form a.dotted.key=value: `trainer.megatron.lr=1e-6`"),
        ("--nam=x", "'--nam=x' is no option of this command (`-h` lists them)"),
        ("a..b=1", "override 'a..b=1' must have the form a.dotted.key=value"),
        ("name.x=1", "override 'name.x=1': `name` holds 'test', not a mapping"),
        ("name=[", "the value is not valid YAML"),
        (
            "algorithm.step=1",
            "command line: algorithm.step: no such key (its value is 1). Did you mean `steps`?",
        ),
    ],
)
def test_a_wrong_override_is_told(here, override, expected):
    with pytest.raises(RecipeError) as error:
        load_recipe(here, override.split())
    assert expected in str(error.value)


def test_the_resolved_recipe_reads_back_as_itself(here, tmp_path):
    recipe = load_recipe(here, ["trainer.megatron.lr=1e-6", "checkpoint.async=true"])
    recipe.write(tmp_path / "resolved.yaml")
    read = load_recipe(tmp_path / "resolved.yaml")
    assert read.resolved() == recipe.resolved()
    assert read.trainer.megatron == recipe.resolved()["trainer"]["megatron"]
    # The run's processes read it with plain YAML and pydantic.
    assert Recipe.model_validate(yaml.safe_load((tmp_path / "resolved.yaml").read_text())) == read


def test_anchors_and_merges_work(here):
    here.write_text(
        RECIPE.replace(
            "  train: {path: train.jsonl, max_prompt_tokens: 64}",
            "  train: &file {path: train.jsonl, max_prompt_tokens: 64}\n  eval: {<<: *file, path: held.jsonl}",
        )
    )
    recipe = load_recipe(here)
    assert recipe.data.eval is not None
    assert (recipe.data.eval.path, recipe.data.eval.max_prompt_tokens) == ("held.jsonl", 64)
