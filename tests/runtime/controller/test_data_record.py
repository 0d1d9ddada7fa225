"""A run notices when its rows are no longer those it began with, and says what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.data_record import DataRecord, compare, training_rows
from verst.runtime.controller.data_record import write as write_record
from verst.runtime.controller.prompts import PromptSource
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.records import DataError
from verst.runtime.run.folder import RunFolder

ROWS = [{"prompt": f"{n} + 1", "label": str(n + 1)} for n in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    return folder


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def source(folder: RunFolder, model: Path, data: dict[str, Any], **algorithm: Any) -> PromptSource:
    recipe = {
        "model": {"path": str(model)},
        "data": data,
        "algorithm": {"steps": 1, "prompts_per_step": 2, "samples_per_prompt": 2, **algorithm},
        "rollout": {"reward": "verst.runtime.rewards:exact", "sampling": {"max_new_tokens": 8}},
        "trainer": {"max_tokens_per_microbatch": 32},
    }
    folder.recipe.write_text(json.dumps(recipe))
    return PromptSource(ControllerConfig.read(folder))


def begin(folder: RunFolder, now: DataRecord, trained: bool = False, accept: bool = False) -> None:
    """What a life does that finds no groups in the store."""
    write_record(folder, now, compare(folder, now, trained, accept))


def events(folder: RunFolder) -> list[str]:
    return [json.loads(line)["message"] for line in folder.events.read_text().splitlines()]


def test_what_is_left_out_is_said_and_counted(folder: RunFolder, model: Path, tmp_path: Path) -> None:
    long = {"prompt": "1" * 30, "label": "2"}
    train = {"path": write(tmp_path / "train.jsonl", *ROWS, long, long), "max_prompt_tokens": 20}
    held = {"path": write(tmp_path / "eval.jsonl", ROWS[0], long), "max_prompt_tokens": 20}
    prompts = source(folder, model, {"train": train, "eval": held})
    begin(folder, prompts.record())
    assert events(folder) == [
        "data.train: 5 prompts, 2 more are longer than max_prompt_tokens and left out. "
        "data.eval: 1 prompts, 1 more are longer than max_prompt_tokens and left out"
    ]
    (line,) = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert line["kind"] == "data"
    assert line["data_train"] == {"rows": 5, "too_long": 2}
    assert line["data_eval"] == {"rows": 1, "too_long": 1}


def test_a_resumed_run_refuses_other_rows(folder: RunFolder, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    train = {"path": write(path, *ROWS), "max_prompt_tokens": 20}
    began = path.stat().st_size

    def start(trained: bool = True, accept: bool = False, **changed: Any) -> None:
        record = source(folder, model, {"train": train | changed}).record()
        begin(folder, record, trained, accept)

    start(trained=False)
    start(shuffle=False)  # the same rows
    write(path, *ROWS, ROWS[0])
    added = path.stat().st_size
    with pytest.raises(DataError) as error:
        start()
    assert str(error.value).startswith(
        f"data.train has other rows than before: its size was {began} bytes, is {added}; usable rows were 5, are 6. "
    )
    assert "set data.accept_changes: true" in str(error.value)
    write(path, *reversed(ROWS))
    with pytest.raises(DataError, match="as many, but with other contents, or tokenised otherwise"):
        start()
    write(path, *ROWS)
    start()
    with pytest.raises(DataError, match="system was None, is 'be brief'"):
        start(system="be brief")
    start(accept=True, system="be brief")
    assert events(folder)[-1].endswith(
        "data.train has other rows than before: system was None, is 'be brief'"
    )
    start(system="be brief")  # the new record


def test_a_run_without_a_checkpoint_may_have_other_data(
    folder: RunFolder, model: Path, tmp_path: Path
) -> None:
    """The first life ended before it had trained: a faulty row was mended, for instance."""
    path = tmp_path / "train.jsonl"
    for rows in (ROWS, ROWS[:3]):
        data = {"train": {"path": write(path, *rows), "max_prompt_tokens": 20}}
        begin(folder, source(folder, model, data).record())
    assert "usable rows were 5, are 3" in events(folder)[-1]


def test_the_run_itself_refuses_what_an_engine_or_a_micro_batch_cannot_hold(
    folder: RunFolder, model: Path, tmp_path: Path
) -> None:
    long = write(tmp_path / "long.jsonl", {"prompt": "1" * 60, "label": "2"})
    train = {"path": write(tmp_path / "train.jsonl", *ROWS), "max_prompt_tokens": 20}
    with pytest.raises(DataError, match=r"long.jsonl:1: the prompt has 63 tokens, .* at most 54"):
        source(folder, model, {"train": train, "eval": {"path": long}})
    shown = write(tmp_path / "shown.jsonl", {"prompt": "1", "response": "2" * 40})
    stages = [{"kind": "sft", "data": {"path": shown}, "steps": 1}, {"kind": "policy"}]
    with pytest.raises(DataError, match=r"shown.jsonl: no usable row; 1 are longer than 32 tokens"):
        source(folder, model, {"train": train}, stages=stages)


def test_sources_are_counted_by_name_and_their_mix_is_part_of_the_record(
    folder: RunFolder, model: Path, tmp_path: Path
) -> None:
    long = {"prompt": "1" * 30, "label": "2"}

    def sources(**weights: float) -> dict[str, Any]:
        given = {
            name: {"path": write(tmp_path / f"{name}.jsonl", *ROWS, *[long] * n), "weight": weight}
            for n, (name, weight) in enumerate(weights.items(), start=1)
        }
        return {"train": {"max_prompt_tokens": 20, "sources": given}}

    first = source(folder, model, sources(a=2, b=1)).record()
    begin(folder, first)
    assert events(folder)[-1] == (
        "data.train.sources.a: 5 prompts, 1 more are longer than max_prompt_tokens and left out. "
        "data.train.sources.b: 5 prompts, 2 more are longer than max_prompt_tokens and left out"
    )
    other_mix = source(folder, model, sources(a=2, b=3)).record()
    assert (
        training_rows(other_mix)
        != training_rows(first)
        == training_rows({**first, "data.eval": first["data.train.sources.a"]})
    )
    with pytest.raises(DataError, match=r"the weights was \{'a': 2.0, 'b': 1.0\}, is \{'a': 2.0, 'b': 3.0\}"):
        begin(folder, other_mix, trained=True)
    with pytest.raises(DataError, match=r"data\.train\.sources\.b is no longer in the recipe"):
        begin(folder, source(folder, model, sources(a=2)).record(), trained=True)
    one = {"train": {"path": write(tmp_path / "a.jsonl", *ROWS), "max_prompt_tokens": 20}}
    with pytest.raises(DataError, match=r"data\.train\.sources\.a is no longer in the recipe"):
        begin(folder, source(folder, model, one).record(), trained=True)
    begin(folder, source(folder, model, sources(a=2, b=1)).record(), trained=True)
