"""`verst plan` applies SGLang's own rules: what it accepts, SGLang takes and does not cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import LLAMA, write_recipe
from verst.launcher.check.rows.context import context_faults
from verst.launcher.recipe.load import parse_recipe
from verst.runtime.rollout.engine.context import context_length, longest_prompt, longest_sample


def faults(folder: Path, *overrides: str) -> list[tuple[str, str]]:
    _, recipe, wrong = parse_recipe(write_recipe(folder), overrides)
    assert recipe is not None
    assert wrong == []
    return [(fault.place.rpartition(".")[2], fault.message) for fault in context_faults(recipe, LLAMA)]


def lengths(prompt: int, new: int) -> tuple[str, str]:
    return f"data.train.max_prompt_tokens={prompt}", f"rollout.sampling.max_new_tokens={new}"


def test_the_longest_that_fits_and_one_token_more(tmp_path: Path) -> None:
    assert faults(tmp_path, *lengths(200, 54)) == []
    ((place, message),) = faults(tmp_path, *lengths(200, 55))
    assert place == "max_new_tokens"
    assert (
        "= 255 tokens do not fit into the engine's context of 256, of which SGLang gives out 254" in message
    )
    assert faults(tmp_path, *lengths(249, 5)) == []
    ((place, message),) = faults(tmp_path, *lengths(250, 1))
    assert place == "max_prompt_tokens"
    assert message == "is 250: of a context of 256 tokens SGLang takes prompts of at most 249: lower it"


def test_the_engines_own_context_counts(tmp_path: Path) -> None:
    assert faults(tmp_path, *lengths(100, 26), "rollout.sglang.context-length=128") == []
    ((_, message),) = faults(tmp_path, *lengths(100, 27), "rollout.sglang.context_length=128")
    assert "context of 128" in message
    ((_, message),) = faults(tmp_path, *lengths(100, 27), "rollout.sglang.max-total-tokens=128")
    assert "context of 128" in message
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(LLAMA | {"max_position_embeddings": 128}))
    ((_, message),) = faults(tmp_path, *lengths(100, 27), f"rollout.model_path={tmp_path}/other")
    assert "context of 128" in message


def test_an_evaluation_needs_room_for_a_prompt(tmp_path: Path) -> None:
    found = faults(tmp_path, *lengths(1, 254), "data.eval={path: train.jsonl}")
    assert [place for place, _ in found] == ["max_new_tokens", "max_new_tokens"]
    assert "leaves no room for a prompt of data.eval" in found[1][1]


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({}, 256),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 512),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 256),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}},
            256,
        ),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_the_context_of_a_model(rope: dict[str, object], context: int | None) -> None:
    assert context_length(LLAMA | rope, {}) == context


def test_a_context_has_one_longest_prompt() -> None:
    assert (longest_sample(256), longest_prompt(256, 1), longest_prompt(256, 100)) == (254, 249, 154)
