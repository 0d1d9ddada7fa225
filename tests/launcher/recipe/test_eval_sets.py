"""One evaluation set or several: what a recipe may say, and where its faults are."""

from __future__ import annotations

from pathlib import Path

import pytest

from verst.launcher.check.evaluation import evaluation_faults, few_are_evaluated
from verst.launcher.recipe.faults import RecipeError
from verst.launcher.recipe.load import load_recipe

RECIPE = """\
name: it
model: {path: .}
data:
  train: {path: train.jsonl}
  eval:
EVAL
algorithm: {steps: 1, prompts_per_step: 1, samples_per_prompt: 1}
rollout: {reward: "m:f"}
"""
TWO = """\
    math: {path: m.jsonl, k: [1, 4], samples_per_prompt: 4, temperature: 1.0, interval: 5}
    code: {path: c.jsonl}"""


def load(tmp_path: Path, evals: str, *overrides: str):
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.replace("EVAL", evals))
    return load_recipe(file, list(overrides))


def test_one_set_is_held_out_and_several_have_names(tmp_path: Path) -> None:
    one = load(tmp_path, "    path: e.jsonl", "data.eval.interval=3")
    assert {name: each.interval for name, each in one.data.eval_sets.items()} == {"held_out": 3}
    assert (one.data.eval_place("held_out"), one.checkpoint.best.set) == ("data.eval", "held_out")
    two = load(tmp_path, TWO, "data.eval.code.interval=3", "algorithm.early_stop={patience: 2}")
    assert {name: each.interval for name, each in two.data.eval_sets.items()} == {"math": 5, "code": 3}
    assert two.data.eval_sets["math"].scale.names() == ("reward", "pass@1", "pass@4", "best@4")
    assert (two.data.eval_place("code"), two.checkpoint.best.set, two.algorithm.early_stop.set) == (
        "data.eval.code",
        "math",
        "math",
    )
    again = tmp_path / "again.yaml"
    two.write(again)
    assert load_recipe(again, ["data.eval.code.interval=4"]).data.eval_sets["code"].interval == 4


@pytest.mark.parametrize(
    ("evals", "told"),
    [
        ("    path: e.jsonl\n    intervall: 3", "data.eval.intervall: no such key"),
        (TWO + "\n    chat: {path: e.jsonl, intervall: 3}", "data.eval.chat.intervall: no such key (its value"),
        (TWO + "\n    chat: {path: e.jsonl, interval: no}", "data.eval.chat.interval: is 'no', must be an integer"),
        (TWO + "\n    chat: {interval: 3}", "data.eval.chat.path: missing. It is the"),
        (TWO + '\n    "a b": {path: e.jsonl}', "data.eval: is "),
        ("    path: e.jsonl\n    k: [8]", "k has 8, but samples_per_prompt is 1: pass@k needs at least k answers"),
        ("    path: e.jsonl\n    k: [2]\n    samples_per_prompt: 2", "is 0, which gives the same answer each time"),
        ("    path: e.jsonl\n    k: [0]", "must be different numbers of at least 1"),
        ("    path: e.jsonl\n    extract: m:f", "extract is for maj@n, which needs samples_per_prompt of at least 2"),
    ],
)  # fmt: skip
def test_a_fault_has_its_place_in_the_set(tmp_path: Path, evals: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, evals)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("override", "place", "told"),
    [
        ("algorithm.early_stop={patience: 2, set: code}", "algorithm.early_stop", "set data.eval.code.interval"),
        ("algorithm.early_stop={patience: 2, set: maths}", "algorithm.early_stop.set", "Did you mean `math`?"),
        ("algorithm.early_stop={patience: 2, metric: pass@8}", "algorithm.early_stop.metric",
         "is 'pass@8', which the set math does not have: it has reward, pass@1, pass@4, best@4"),
        ("checkpoint.best={metric: maj@4}", "checkpoint.best.metric", "which the set math does not have"),
        ("data.eval_engines=2", "data.eval_engines", "is 2, but there are 1 engines (rollout.engines)"),
    ],
)  # fmt: skip
def test_what_decides_must_be_a_figure_that_there_is(
    tmp_path: Path, override: str, place: str, told: str
) -> None:
    [fault] = evaluation_faults(load(tmp_path, TWO, override))
    assert fault.place == place
    assert told in fault.message


def test_sound_choices_have_no_fault(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, TWO, "algorithm.early_stop={patience: 2, metric: pass@4}", "checkpoint.best={metric: best@4}",
        "checkpoint.keep_best=1", "checkpoint.interval=10", "data.eval_engines=1",
    )  # fmt: skip
    assert list(evaluation_faults(recipe)) == []
    assert few_are_evaluated(recipe) is None
    late = load(tmp_path, TWO, "checkpoint.best={set: code}")
    assert "data.eval.code.interval is not set" in (few_are_evaluated(late) or "")
