"""`verst plan` reads the data files: every row that would end a run is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launcher.check.lines import check_lines
from tests.launcher.recipes_for_tests import parsed, write_recipe
from verst.launcher.check.rows.data import data_faults
from verst.launcher.recipe.load import parse_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


def faults(*overrides: str) -> list[str]:
    return [f"{fault.place}: {fault.message}" for fault in data_faults(parsed(*overrides))]


GOOD = {"prompt": "a", "label": "1"}
BROKEN = {
    r'{"prompt": "a\ud800b", "label": "1"}': r"'prompt' holds \ud800, one half of a surrogate pair",
    '{"prompt": "a", "label": null}': "the label 'label' is null",
    '{"prompt": "a", "label": NaN}': "the label 'label' is not a number (NaN)",
    '{"prompt": [{"role": "user", "content": 5}], "label": "1"}': "has the content 5; a string is needed",
    '{"prompt": [{"role": "user", "content": null}], "label": "1"}': "has no content; a string is needed",
    '{"prompt": "a", "label": "1", "tools": 3}': "'tools' is '3'; a list of JSON schemas is needed",
    f'{{"prompt": "a", "label": {10**30}}}': "prompt, label or metadata cannot be sent to the reward",
}


@pytest.mark.parametrize("row", BROKEN)
@pytest.mark.parametrize("section", ["train", "eval"])
def test_a_row_that_would_end_the_run_is_named(here: Path, row: str, section: str) -> None:
    Path("rows.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{row}\n")
    (fault,) = faults(f"data.{section}.path=rows.jsonl")
    assert fault.startswith(f"data.{section}.path: {here}/rows.jsonl:3: ")
    assert BROKEN[row] in fault


def test_a_path_into_an_object_finds_the_label(here: Path) -> None:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a", "reward_model": {"ground_truth": "1"}}))
    key = "data.train.label_key=reward_model.ground_truth"
    assert faults("data.train.path=rows.jsonl", key) == []
    (fault,) = faults("data.train.path=rows.jsonl", key + "s")
    assert (
        "rows.jsonl:1: there is no 'reward_model.ground_truths': 'reward_model' has 'ground_truth'" in fault
    )


def test_a_broken_demonstration_is_named(here: Path) -> None:
    Path("shown.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": 3}\n')
    stages = "algorithm.stages=[{kind: sft, data: {path: shown.jsonl}, steps: 1}, {kind: policy}]"
    assert faults(stages) == [
        f"algorithm.stages.0.data.path: {here}/shown.jsonl:2: 'response' is 3, not a string or a message of the "
        "assistant"
    ]


def test_how_prompts_are_rendered_is_used_or_refused(here: Path) -> None:
    (missing,) = faults("data.train.chat_template_file=own.jinja")
    assert missing == f"data.train.chat_template_file: is 'own.jinja': {here}/own.jinja is not a file"
    Path("own.jinja").write_text("x")
    assert faults("data.train.chat_template_file=own.jinja") == []
    (off,) = faults("data.train.chat_template=false", "data.train.chat_template_kwargs={a: 1}")
    assert off.startswith("data.train.chat_template_kwargs: has no effect with chat_template false")


def test_an_evaluation_has_no_order_to_shuffle(here: Path) -> None:
    _, _, found = parse_recipe(Path("recipe.yaml"), ("data.eval={path: train.jsonl, shuffle: true}",))
    (fault,) = found
    assert fault.place == "data.eval.shuffle"
    assert fault.message.startswith("no such key (its value is True)")


def several(**sources: dict[str, object]) -> str:
    """An override that replaces the single file by sources."""
    return f"data.train={json.dumps({'max_prompt_tokens': 64, 'sources': sources})}"


def test_each_source_is_checked_by_its_own_name(here: Path) -> None:
    Path("words.jsonl").write_text('{"question": "a", "label": "1"}\n')
    (fault,) = faults(several(sums={"path": "train.jsonl"}, words={"path": "words.jsonl"}))
    assert fault == (
        f"data.train.sources.words.path: {here}/words.jsonl:1: no column 'prompt'; it has 'question', 'label'; "
        "set data.train.sources.words.prompt_key to one of them"
    )
    (gone,) = faults(several(sums={"path": "train.jsonl"}, words={"path": "gone.jsonl"}))
    assert gone.startswith("data.train.sources.words.path: is 'gone.jsonl'")
    assert faults(several(sums={"path": "train.jsonl", "prompt_key": "prompt"})) == []


def test_the_reward_of_a_source_is_checked_like_every_reward(here: Path) -> None:
    def lines(reward: str) -> list[str]:
        return check_lines(several(a={"path": "train.jsonl", "reward": reward}, b={"path": "train.jsonl"}))

    assert lines("my_hooks:awaited") == []
    (fault,) = lines("my_hooks:two")
    assert "data.train.sources.a.reward: is 'my_hooks:two': it will be called with" in fault
    (bare,) = lines("exact")
    assert "You may mean `verst.runtime.rewards:exact`" in bare


def test_the_longest_sample_of_any_source_must_fit(here: Path) -> None:
    own = several(a={"path": "train.jsonl"}, b={"path": "train.jsonl", "max_new_tokens": 40})
    (fault,) = check_lines(own, "trainer.max_tokens_per_microbatch=100")
    assert (
        "(data.train.max_prompt_tokens 64 + data.train.sources.b.max_new_tokens 40 = 104), which could never"
        in fault
    )
    assert check_lines(own, "trainer.max_tokens_per_microbatch=104") == []
    own = several(a={"path": "train.jsonl"}, b={"path": "train.jsonl", "max_new_tokens": 240})
    lines = check_lines(own)
    assert any("data.train.sources.b.max_new_tokens: is 240: " in line for line in lines)


def test_a_missing_path_and_an_unknown_key_of_a_source_are_told_at_their_place(here: Path) -> None:
    _, _, found = parse_recipe(Path("recipe.yaml"), [several(a={"wieght": 2}, b={"path": "train.jsonl"})])
    told = {fault.place: fault.message for fault in found}
    assert told["data.train.sources.a.path"].startswith("missing. It is the prompts, one a row")
    assert told["data.train.sources.a.wieght"] == "no such key (its value is 2). Did you mean `weight`?"


def test_folders_and_sources_of_ones_own_are_checked_as_files_are(here: Path) -> None:
    Path("shards").mkdir()
    Path("shards/0.jsonl").write_text('{"prompt": "a", "label": "1"}\n')
    Path("shards/1.jsonl").write_text('{"prompt": "a", "label": "1"}\n{"prompt": 3, "label": "1"}\n')
    (fault,) = faults("data.train.path=shards")
    assert fault.startswith(f"data.train.path: {here}/shards/1.jsonl:2: 'prompt' is '3'")
    (gone,) = faults("data.train.path='shards/*.parquet'")
    assert "no file matches this pattern" in gone
    Path("own.py").write_text("class Rows:\n    def __init__(self, path): ...\n")
    (wrong,) = check_lines("data.train.path=own:Rows")
    assert "data.train.path: is 'own:Rows': it will be called with 0 positional arguments" in wrong
    (missing,) = check_lines("data.train.path=own:Row")
    assert "defines no `Row`" in missing


def test_a_curriculum_is_called_once_on_made_up_rows(here: Path) -> None:
    Path("order.py").write_text(
        "def one(call):\n    return [1.0]\n\n"
        "def good(call):\n    return [1.0] * len(call.rows)\n\n"
        "def two(call, more):\n    return [1.0]\n"
    )
    assert check_lines("data.train.curriculum=order:good") == []
    (few,) = check_lines("data.train.curriculum=order:one")
    assert "called on made-up input: returned weights of shape [1], not [3], one for each row" in few
    (more,) = check_lines(several(a={"path": "train.jsonl", "curriculum": "order:two"}))
    assert "data.train.sources.a.curriculum: is 'order:two': it will be called with 1 positional" in more
    (bundled,) = check_lines("data.train.curriculum=easy_first")
    assert "You may mean `verst.runtime.data.curricula:easy_first`" in bundled
    (both,) = faults("data.train.curriculum=order:good", "data.train.shuffle=false")
    assert both == "data.train.shuffle: is false, but the curriculum decides the order: leave it out"
