"""Prompt files are read whole or refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from verst.runtime.algorithms.stages import SftFileConfig
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.demonstrations import load_demonstrations
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.prompts import load_prompts
from verst.runtime.data.records import DataError

ROWS = [
    {"prompt": "1 + 1", "label": "2", "metadata": {"hard": False}, "source": "hand"},
    {"prompt": [{"role": "user", "content": "2 + 2"}], "label": "4"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return character_tokenizer()


def write(folder: Path, *lines: str) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_become_rendered_tokens_with_label_and_metadata(tmp_path: Path, tokenizer: Any) -> None:
    prompts = load_prompts(PromptFileConfig(path=write(tmp_path, *map(json.dumps, ROWS))), tokenizer)
    assert [p.text for p in prompts.rows] == [
        "<|start|>1 + 1<|end|><|start|>",
        "<|start|>2 + 2<|end|><|start|>",
    ]
    assert tokenizer.decode(prompts[0].ids) == prompts[0].text
    assert len(prompts[0].ids) == 8, "a character each, and three special tokens"
    assert [p.label for p in prompts.rows] == ["2", "4"]
    assert prompts[0].metadata == {"hard": False, "source": "hand"}


def test_parquet_gives_the_same_prompts(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"question": f"{n} + 1", "answer": n + 1} for n in range(5)]
    path = tmp_path / "prompts.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    config = PromptFileConfig(path=str(path), prompt_key="question", label_key="answer", chat_template=False)
    prompts = load_prompts(config, tokenizer)
    assert [p.text for p in prompts.rows] == [f"{n} + 1" for n in range(5)]
    assert [p.label for p in prompts.rows] == [1, 2, 3, 4, 5]


def test_a_system_message_comes_first(tmp_path: Path, tokenizer: Any) -> None:
    config = PromptFileConfig(path=write(tmp_path, json.dumps(ROWS[0])), system="be short")
    assert load_prompts(config, tokenizer)[0].text.startswith("<|start|>be short<|end|><|start|>1 + 1")


def test_prompts_that_are_too_long_are_counted_and_left_out(tmp_path: Path, tokenizer: Any) -> None:
    long = json.dumps({"prompt": "1" * 50, "label": ""})
    path = write(tmp_path, json.dumps(ROWS[0]), long, long)
    prompts = load_prompts(PromptFileConfig(path=path, max_prompt_tokens=20), tokenizer)
    assert (len(prompts), prompts.too_long) == (1, 2)
    with pytest.raises(DataError, match="no usable prompt; 3 are longer than max_prompt_tokens = 4"):
        load_prompts(PromptFileConfig(path=path, max_prompt_tokens=4), tokenizer)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x", ', r"prompts.jsonl:2: not valid JSON: "),
        ("[1, 2]", r"prompts.jsonl:2: a JSON object is needed, not list"),
        ('{"question": "x", "label": 1}', r"prompts.jsonl:2: no column 'prompt'; it has 'question', 'label'"),
        ('{"prompt": "x"}', r"prompts.jsonl:2: no column 'label'"),
        ('{"prompt": 7, "label": 1}', r"prompts.jsonl:2: 'prompt' is '7'; a string or a list"),
        ('{"prompt": [{"content": "x"}], "label": 1}', r"prompts.jsonl:2: 'prompt' is"),
        ('{"prompt": "x", "label": 1, "metadata": 3}', r"prompts.jsonl:2: metadata is 3; an object"),
        (
            r'{"prompt": "a\ud800b", "label": 1}',
            r"prompts.jsonl:2: 'prompt' holds \\ud800, one half of a surrogate",
        ),
        (r'{"prompt": "x", "label": "\uDC01"}', r"prompts.jsonl:2: 'label' holds \\udc01"),
        ('{"prompt": "x", "label": 1, "label": 2}', r"prompts.jsonl:2: .*the key 'label' is there twice"),
        ('{"prompt": "x", "label": null}', r"prompts.jsonl:2: the label 'label' is null; leave the row out"),
        ('{"prompt": "x", "label": NaN}', r"prompts.jsonl:2: the label 'label' is not a number \(NaN\)"),
        (
            '{"prompt": "x", "label": 1, "big": 1' + "0" * 30 + "}",
            r"prompts.jsonl:2: prompt, label or metadata cannot be",
        ),
        (
            '{"prompt": [{"role": "user", "content": 5}], "label": 1}',
            r":2: 'prompt', message 1 .* has the content 5",
        ),
        (
            '{"prompt": [{"role": "user", "content": null}], "label": 1}',
            r":2: 'prompt', message 1 .* has no content",
        ),
        (
            '{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "label": 1}',
            r":2: .* of the type 'image'",
        ),
        (
            '{"prompt": [{"from": "ape", "value": "x"}], "label": 1}',
            r":2: 'prompt', message 1 is from 'ape'; known",
        ),
        (
            '{"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "label": 1}',
            r":2: 'prompt' ends with a message of the assistant; set final_assistant to `continue`",
        ),
        ('{"prompt": "x", "label": 1, "tools": "[1"}', r":2: 'tools' is '\[1', which is not JSON"),
        ('{"prompt": "x", "label": 1, "tools": [3]}', r":2: 'tools' is '\[3\]'; a list of JSON schemas"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, tokenizer: Any, line: str, message: str) -> None:
    path = write(tmp_path, json.dumps(ROWS[0]), line)
    with pytest.raises(DataError, match=message):
        load_prompts(PromptFileConfig(path=path), tokenizer)


def test_files_that_cannot_be_read_are_named(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: there is no such file"):
        load_prompts(PromptFileConfig(path=str(tmp_path / "nowhere.jsonl")), tokenizer)
    (tmp_path / "p.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"p\.parquet: cannot be read as Parquet after row 0: "):
        load_prompts(PromptFileConfig(path=str(tmp_path / "p.parquet")), tokenizer)
    (tmp_path / "p.csv").write_text("prompt\n")
    with pytest.raises(DataError, match=r"p\.csv: the file name must end in \.jsonl or \.json"):
        load_prompts(PromptFileConfig(path=str(tmp_path / "p.csv")), tokenizer)


def test_a_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = None
    config = PromptFileConfig(path=write(tmp_path, json.dumps(ROWS[0])))
    with pytest.raises(DataError, match="no chat template; set chat_template: false"):
        load_prompts(config, tokenizer)


def test_demonstrations_end_with_the_end_token(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path, json.dumps({"prompt": "reverse 12=", "response": "21"}))
    config = SftFileConfig(path=path)
    (demonstration,) = load_demonstrations(config, tokenizer, 99).rows
    assert tokenizer.decode(demonstration.prompt_ids) == "<|start|>reverse 12=<|end|><|start|>"
    assert tokenizer.decode(demonstration.response_ids) == "21<|end|>"
