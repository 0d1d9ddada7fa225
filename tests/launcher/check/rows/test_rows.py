"""`verst plan` reads every row with the model's tokenizer: lengths and templates, by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.launcher.recipes_for_tests import LLAMA, parsed, write_recipe, write_tokenizer
from verst.launcher.check.rows import row_program
from verst.launcher.check.rows.row_program import check_rows, with_absolute_data
from verst.launcher.check.rows.rows import RowReport, row_report
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.data.models import character_tokenizer


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


def recipe_of(*overrides: str) -> Recipe:
    return with_absolute_data(parsed(*overrides))


def report(*overrides: str, tokenizer: Any = None) -> RowReport:
    return check_rows(recipe_of(*overrides), tokenizer or character_tokenizer())


def faults(*overrides: str, tokenizer: Any = None) -> list[str]:
    return [f"{fault.place}: {fault.message}" for fault in report(*overrides, tokenizer=tokenizer).faults]


def write(*rows: dict[str, Any]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_integers_that_pandas_made_floats_are_told(here: Path) -> None:
    def said(*labels: float) -> list[str]:
        table = pyarrow.table({"prompt": ["a"] * len(labels), "label": list(labels)})
        parquet.write_table(table, "rows.parquet")
        return report("data.train.path=rows.parquet").said

    (line,) = said(7.0, 8.0)
    assert line.startswith(
        "data.train: all labels are whole numbers stored as floats, such as 8.0; pandas makes them"
    )
    assert said(7.0, 7.5) == []
    assert said(7, 8) == []


def test_a_token_that_the_model_does_not_have_is_named(here: Path) -> None:
    """As when a token is added to the tokenizer, and the model stays as it is."""
    larger = character_tokenizer()
    larger.add_tokens(["<tool>"] + [f"<{n}>" for n in range(LLAMA["vocab_size"])])
    last = f"<{LLAMA['vocab_size'] - len(character_tokenizer()) - 2}>"  # the last that the model has
    write({"prompt": f"a<tool>{last}", "label": "1"})
    assert faults("data.train.path=rows.jsonl", tokenizer=larger) == []
    write({"prompt": "a", "label": "1"}, {"prompt": "a<63>", "label": "1"})
    (fault,) = faults("data.train.path=rows.jsonl", tokenizer=larger)
    assert (
        f"{here}/rows.jsonl:2: has the token '<63>' of id {len(larger) - 1}, but the model has only 64"
        in fault
    )
    Path("shown.jsonl").write_text(json.dumps({"prompt": "a", "response": "<63>"}))
    stages = "algorithm.stages=[{kind: sft, data: {path: shown.jsonl}, steps: 1}, {kind: policy}]"
    (fault,) = faults(stages, tokenizer=larger)
    assert fault.startswith(f"algorithm.stages.0.data.path: {here}/shown.jsonl:1: has the token '<63>'")


def test_rows_that_are_left_out_are_counted(here: Path) -> None:
    write(
        {"prompt": "a" * 60, "label": "1"}, {"prompt": "a", "label": "1"}, {"prompt": "a" * 62, "label": "1"}
    )
    train = "data.train.path=rows.jsonl"
    assert report(train).said == [
        "data.train: 1 of 3 prompts are longer than max_prompt_tokens (64) and will be left out"
    ]
    assert faults(train, "data.train.max_prompt_tokens=3") == [
        f"data.train.path: {here}/rows.jsonl: no usable prompt; 3 are longer than max_prompt_tokens = 3"
    ]


def test_a_held_out_prompt_that_the_engine_refuses_is_named(here: Path) -> None:
    write({"prompt": "abc", "label": "1"}, {"prompt": "a" * 300, "label": "1"})
    found = report("data.eval.path=rows.jsonl")
    assert found.said == []
    (fault,) = [f"{fault.place}: {fault.message}" for fault in found.faults]
    assert fault == (
        f"data.eval.path: {here}/rows.jsonl:2: the prompt has 303 tokens, but with rollout.sampling.max_new_tokens new "
        "ones the engine takes at most 246: set max_prompt_tokens to at most 246, which leaves such rows out, or lower "
        "max_new_tokens"
    )
    assert faults("data.eval={path: rows.jsonl, max_prompt_tokens: 246}") == []


def test_rows_of_a_stage_that_no_micro_batch_holds_are_counted(here: Path) -> None:
    write({"prompt": "abc", "response": "b"}, {"prompt": "abc", "response": "b" * 93})
    stages = "algorithm.stages=[{kind: sft, data: {path: rows.jsonl}, steps: 1}, {kind: policy}]"
    assert report(stages, "trainer.max_tokens_per_microbatch=100").said == []
    left_out = "algorithm.stages.0.data: 1 of 2 rows are longer than 99 tokens and will be left out"
    assert report(stages, "trainer.max_tokens_per_microbatch=99").said == [left_out]
    # Padded to a multiple of 4.
    parallel = ("trainer.ranks_per_node=4", "trainer.megatron.context-parallel-size=2")
    assert report(stages, "trainer.max_tokens_per_microbatch=102", *parallel).said == []
    write({"prompt": "abc", "response": "b" * 94})
    (fault,) = faults(stages, "trainer.max_tokens_per_microbatch=103", *parallel)
    assert (
        fault
        == f"algorithm.stages.0.data.path: {here}/rows.jsonl: no usable row; 1 are longer than 100 tokens"
    )


def test_what_the_template_does_not_take_is_named(here: Path) -> None:
    write({"prompt": "a", "label": "1"}, {"prompt": [{"role": "system", "content": "s"}], "label": "1"})
    strict, bare = character_tokenizer(), character_tokenizer()
    strict.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    )
    bare.chat_template = None
    (fault,) = faults("data.train.path=rows.jsonl", tokenizer=strict)
    assert (
        fault
        == f"data.train.path: {here}/rows.jsonl:2: the chat template does not take these messages: no system"
    )
    (fault,) = faults("data.train.path=rows.jsonl", tokenizer=bare)
    assert "the tokenizer has no chat template; set chat_template: false" in fault


def test_a_turn_that_the_engines_do_not_end_is_told(here: Path) -> None:
    tokenizer = character_tokenizer()
    assert report(tokenizer=tokenizer).said == []
    tokenizer.eos_token = "<|start|>"
    (said,) = report(tokenizer=tokenizer).said
    assert said.startswith(
        "model.path: the chat template ends a turn with <|end|>, at which the engines do not stop"
    )
    assert report("rollout.sampling.stop=['<|end|>']", tokenizer=tokenizer).said == []
    start, end = tokenizer.convert_tokens_to_ids(["<|start|>", "<|end|>"])
    (here / "model/generation_config.json").write_text(json.dumps({"eos_token_id": [start, end]}))
    assert report(tokenizer=tokenizer).said == []
    (here / "model/generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    assert report(tokenizer=tokenizer).said == [
        "model.path: eos is <|start|> in the tokenizer, but <|end|> in generation_config.json; the engines end an "
        "answer at each, and an export keeps both"
    ]


def test_how_far_a_large_file_was_read_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(*({"prompt": "a", "label": "1"} for _ in range(1000)))
    monkeypatch.setattr(row_program, "_TOKENISED", 500)
    assert report("data.train.path=rows.jsonl").said == [
        "data.train: the first 512 of 1,000 prompts were tokenised; the run tokenises all"
    ]
    monkeypatch.setattr(row_program, "_READING_S", 0.0)
    assert report("data.train.path=rows.jsonl").said == [
        f"data.train: only the first 256 rows of {here}/rows.jsonl were read, 256 of them tokenised; the run reads all "
        "when it starts"
    ]


def test_the_program_uses_the_tokenizer_of_the_model(here: Path) -> None:
    recipe = recipe_of("data.eval.path=rows.jsonl")
    write({"prompt": "a" * 300, "label": "1"})
    write_tokenizer(here / "model")
    (fault,) = row_report(recipe).faults
    assert (fault.place, "the prompt has 301 tokens" in fault.message) == ("data.eval.path", True)


def test_a_model_without_a_tokenizer_is_told(here: Path) -> None:
    (here / "model/tokenizer.json").write_text("{}")
    (fault,) = row_report(recipe_of()).faults
    assert fault.place == "model.path"
    assert fault.message.startswith("is 'model': its tokenizer cannot be loaded: ")
    assert json.loads((here / "model/config.json").read_text()) == LLAMA
