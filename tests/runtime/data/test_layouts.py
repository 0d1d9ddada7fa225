"""Rows as verl, slime, TRL and OpenRLHF write them give the prompt, label and metadata that they mean, and JSONL and
Parquet the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet

from verst.runtime.algorithms.stages import SftFileConfig
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.demonstrations import load_demonstrations
from verst.runtime.data.models import agree_on_the_end, character_tokenizer
from verst.runtime.data.prompts import Prompts, load_prompts
from verst.runtime.data.records import DataError

# Writes a message as `<|start|>role:content<|end|>` and a line break, calls and tools where there are any.
TEMPLATE = (
    "{% if tools %}tools {% for tool in tools %}{{ tool['function']['name'] }},{% endfor %}\n{% endif %}"
    "{% for message in messages %}<|start|>{{ message['role'] }}:{{ message['content'] or '' }}"
    "{% if 'tool_calls' in message %}{% for call in message['tool_calls'] %}!{{ call['name'] }}{% endfor %}{% endif %}"
    "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant:{% if brief %}={% endif %}{% endif %}"
)
USER = [{"role": "user", "content": "1 + 1"}]
BEGUN = "<|start|>user:1 + 1<|end|>\n<|start|>assistant:"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def jsonl(folder: Path, *rows: Any) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def load(folder: Path, tokenizer: Any, row: dict[str, Any], **config: Any) -> Prompts:
    return load_prompts(PromptFileConfig(path=jsonl(folder, row), **config), tokenizer)


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any], Any, dict[str, Any]]] = {
    # name: row, recipe, label, metadata
    "verl": (
        {
            "data_source": "sums",
            "prompt": USER,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"index": 3},
        },
        {"label_key": "reward_model.ground_truth"},
        "2",
        {
            "data_source": "sums",
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"index": 3},
        },
    ),
    "slime": (
        {"prompt": USER, "label": "2", "metadata": {"source": "sums"}},
        {},
        "2",
        {"source": "sums"},
    ),
    "TRL, conversational": ({"prompt": USER, "solution": "2"}, {"label_key": "solution"}, "2", {}),
    "TRL, plain": ({"prompt": "1 + 1", "solution": 2}, {"label_key": "solution"}, 2, {}),
    "OpenRLHF": (
        {"context_messages": USER, "answer": "2"},
        {"prompt_key": "context_messages", "label_key": "answer"},
        "2",
        {},
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}],
            "answer": ["2", "two"],
        },
        {"prompt_key": "conversations", "label_key": "answer", "final_assistant": "drop"},
        ["2", "two"],
        {},
    ),
    "nested": (
        {"data": {"q": "1 + 1"}, "l": 2},
        {"prompt_key": "data.q", "label_key": "l"},
        2,
        {"data": {"q": "1 + 1"}},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_of_each_layout(tmp_path: Path, tokenizer: Any, layout: str) -> None:
    row, recipe, label, metadata = LAYOUTS[layout]
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    for path in (jsonl(tmp_path, row), str(tmp_path / "rows.parquet")):
        (prompt,) = load_prompts(PromptFileConfig(path=path, **recipe), tokenizer).rows
        assert (prompt.text, prompt.label, prompt.metadata) == (BEGUN, label, metadata)
        assert type(prompt.label) is type(label)


def test_a_path_that_leads_nowhere_says_what_is_there(tmp_path: Path, tokenizer: Any) -> None:
    row = LAYOUTS["verl"][0]
    with pytest.raises(
        DataError, match=r":1: there is no 'reward_model.truth': 'reward_model' has 'style', 'ground"
    ):
        load(tmp_path, tokenizer, row, label_key="reward_model.truth")
    with pytest.raises(DataError, match=r":1: there is no 'ability.x': 'ability' is 'math'"):
        load(tmp_path, tokenizer, row, label_key="ability.x")


CALL = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]},
    {"role": "tool", "content": "r"},
]


def test_keys_that_parquet_fills_with_null_are_absent(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": USER, "label": "1"}, {"prompt": CALL, "label": "2"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    filled = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert filled[0]["prompt"][0]["tool_calls"] is None
    texts = [
        [prompt.text for prompt in load_prompts(PromptFileConfig(path=path), tokenizer).rows]
        for path in (jsonl(tmp_path, *rows), str(tmp_path / "rows.parquet"), jsonl(tmp_path, *filled))
    ]
    assert texts[0] == [
        BEGUN,
        "<|start|>user:q<|end|>\n<|start|>assistant:!f<|end|>\n<|start|>tool:r<|end|>\n<|start|>assistant:",
    ]
    assert texts[1] == texts[2] == texts[0]


def test_messages_as_maps_are_messages(tmp_path: Path, tokenizer: Any) -> None:
    kind = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    prompts = pyarrow.array([[[("role", "user"), ("content", "1 + 1")]]], type=kind)
    parquet.write_table(pyarrow.table({"prompt": prompts, "label": ["2"]}), tmp_path / "maps.parquet")
    assert load_prompts(PromptFileConfig(path=str(tmp_path / "maps.parquet")), tokenizer)[0].text == BEGUN


def test_parts_of_text_are_joined(tmp_path: Path, tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "1 +", "image": None}, {"type": "text", "text": " 1"}]
    row = {"prompt": [{"role": "user", "content": parts}], "label": "2"}
    assert load(tmp_path, tokenizer, row)[0].text == BEGUN


def test_a_call_of_tools_needs_no_text(tmp_path: Path, tokenizer: Any) -> None:
    called = [CALL[0], {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}, CALL[2]]
    text = load(tmp_path, tokenizer, {"prompt": called, "label": "1"})[0].text
    assert "<|start|>assistant:!f<|end|>" in text


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS)])
def test_a_rows_tools_reach_the_template(tmp_path: Path, tokenizer: Any, given: Any) -> None:
    row = {"prompt": USER, "label": "2", "tools": given}
    assert load(tmp_path, tokenizer, row)[0].text == "tools f," + BEGUN
    assert load(tmp_path, tokenizer, row, tools_key=None)[0].text == BEGUN
    assert load(tmp_path, tokenizer, {"prompt": USER, "label": "2", "tools": []})[0].text == BEGUN
    with pytest.raises(DataError, match=r":1: the row has tools, .*, but chat_template is false"):
        load(tmp_path, tokenizer, row, chat_template=False)
    with pytest.raises(DataError, match=r":1: the row has tools, which the chat template does not use"):
        load(tmp_path, character_tokenizer(), row)


def test_arguments_of_the_template_are_used_or_refused(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": USER, "label": "2"}
    assert load(tmp_path, tokenizer, row, chat_template_kwargs={"brief": True})[0].text == BEGUN + "="
    assert load(tmp_path, tokenizer, row, chat_template_kwargs={"brief": False})[0].text == BEGUN
    with pytest.raises(
        DataError, match=r"has 'breif', which the chat template does not use; did you mean 'brief'\?"
    ):
        load(tmp_path, tokenizer, row, chat_template_kwargs={"breif": True})
    with pytest.raises(DataError, match="Verst itself sets 'tools'"):
        load(tmp_path, tokenizer, row, chat_template_kwargs={"tools": []})


def test_a_template_of_the_recipes_own(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": USER, "label": "2"}
    (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    assert load(tmp_path, tokenizer, row, chat_template_file=str(tmp_path / "own.jinja"))[0].text == "[1 + 1]"
    with pytest.raises(DataError, match=r"chat_template_file .*gone.jinja cannot be read: .*No such file"):
        load(tmp_path, tokenizer, row, chat_template_file=str(tmp_path / "gone.jinja"))


def test_messages_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}x"
    )
    row = {"prompt": [{"role": "system", "content": "s"}, *USER], "label": "2"}
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: the chat template does not take these messages: no system here"
    ):
        load(tmp_path, tokenizer, row)


def test_a_prompt_that_the_model_continues(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": [*USER, {"role": "assistant", "content": "it is"}], "label": "2"}
    assert load(tmp_path, tokenizer, row, final_assistant="continue")[0].text == BEGUN + "it is"
    assert load(tmp_path, tokenizer, row, final_assistant="drop")[0].text == BEGUN
    with pytest.raises(DataError, match=":1: 'prompt' has no message before the assistant's"):
        load(tmp_path, tokenizer, {"prompt": row["prompt"][1:], "label": "2"}, final_assistant="drop")


def test_a_prompt_that_the_engine_does_not_take_is_named(tmp_path: Path, tokenizer: Any) -> None:
    path = jsonl(tmp_path, {"prompt": "1" * 30, "label": "2"}, {"prompt": "1", "label": "2"})
    tokens = len(tokenizer(BEGUN)["input_ids"]) - 5 + 30
    with pytest.raises(
        DataError, match=rf":1: the prompt has {tokens} tokens, .* at most 40: set max_prompt_tokens"
    ):
        load_prompts(PromptFileConfig(path=path), tokenizer, engine_takes=40)
    left = load_prompts(PromptFileConfig(path=path, max_prompt_tokens=40), tokenizer, engine_takes=40)
    assert (len(left), left.too_long) == (1, 1)


ANSWER = {"role": "assistant", "content": "2"}
DEMONSTRATIONS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "prompt and response": ({"prompt": "1 + 1", "response": "2"}, {}),
    "TRL, plain": ({"prompt": "1 + 1", "completion": "2"}, {"response_key": "completion"}),
    "TRL, conversational": ({"prompt": USER, "completion": [ANSWER]}, {"response_key": "completion"}),
    "messages (TRL, verl, slime)": ({"messages": [*USER, ANSWER]}, {"messages_key": "messages"}),
    "conversations (ShareGPT)": (
        {"conversations": [{"from": "human", "value": "1 + 1"}, {"from": "gpt", "value": "2"}]},
        {"messages_key": "conversations"},
    ),
    "OpenRLHF": ({"question": "1 + 1", "answer": "2"}, {"prompt_key": "question", "response_key": "answer"}),
    "verl": (
        {"extra_info": {"question": "1 + 1", "answer": "2"}},
        {"prompt_key": "extra_info.question", "response_key": "extra_info.answer"},
    ),
}


def documented(heading: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The table of docs/your-data.md whose third column has this heading: name -> row, recipe."""
    lines = (Path(__file__).parents[3] / "docs/your-data.md").read_text().splitlines()
    begin = lines.index(f"| written for | a row | {heading} |") + 2
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[begin:])
    cells = [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table]
    return {name: (json.loads(row), yaml.safe_load(recipe)) for name, row, recipe in cells}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_rows_that_the_guide_shows_are_read(tmp_path: Path, tokenizer: Any, form: str) -> None:
    path = str(tmp_path / f"rows.{form}")

    def write(row: dict[str, Any]) -> str:
        if form == "jsonl":
            return jsonl(tmp_path, row)
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
        return path

    prompts, shown = documented("recipe"), documented("recipe: `data` of the stage")
    assert (len(prompts), len(shown)) == (5, 7)
    for row, recipe in prompts.values():
        (prompt,) = load_prompts(PromptFileConfig(**recipe["train"] | {"path": write(row)}), tokenizer).rows
        assert (prompt.text, prompt.label) == (BEGUN, "2")
    for row, recipe in shown.values():
        config = SftFileConfig(**recipe | {"path": write(row)})
        (demonstration,) = load_demonstrations(config, tokenizer, 99).rows
        assert demonstration.prompt_ids.tolist() == tokenizer(BEGUN)["input_ids"]
        assert tokenizer.decode(demonstration.response_ids) == "2<|end|>"


@pytest.mark.parametrize("layout", DEMONSTRATIONS)
def test_a_demonstration_of_each_layout(tmp_path: Path, tokenizer: Any, layout: str) -> None:
    row, keys = DEMONSTRATIONS[layout]
    config = SftFileConfig(path=jsonl(tmp_path, row), **keys)  # type: ignore[arg-type]
    (shown,) = load_demonstrations(config, tokenizer, 99).rows
    assert shown.prompt_ids.tolist() == tokenizer(BEGUN, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(shown.response_ids) == "2<|end|>"


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"prompt": "x", "response": 3}, {}, r":1: 'response' is 3, not a string or a message"),
        ({"prompt": "x", "response": [ANSWER, ANSWER]}, {}, r":1: 'response' has 2 messages; only one"),
        ({"m": USER}, {"messages_key": "m"}, r":1: 'm' has no message of the assistant to train on"),
        ({"m": [ANSWER]}, {"messages_key": "m"}, r":1: the assistant's message 1 has no message before it"),
        (
            {"m": [*USER, ANSWER, *USER]},
            {"messages_key": "m", "train_on": "last"},
            r":1 ends with a message of the role 'user'",
        ),
        ({"prompt": "x", "response": CALL[1:2]}, {}, r":1: 'response' ends with a call of tools"),
    ],
)
def test_a_broken_demonstration_is_named(
    tmp_path: Path, tokenizer: Any, row: dict[str, Any], keys: dict[str, str], message: str
) -> None:
    config = SftFileConfig(path=jsonl(tmp_path, row), **keys)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load_demonstrations(config, tokenizer, 99)


def test_a_demonstration_without_a_prompt_is_named(tmp_path: Path, tokenizer: Any) -> None:
    config = SftFileConfig(path=jsonl(tmp_path, {"prompt": "", "response": "2"}), chat_template=False)
    with pytest.raises(DataError, match=r":1: the prompt is empty$"):
        load_demonstrations(config, tokenizer, 99)


def test_a_demonstration_ends_as_the_template_ends_a_turn(tmp_path: Path) -> None:
    """Whatever the tokenizer takes for the end of a sequence: SmolLM2's GGUF file names the wrong token."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.eos_token = "<|start|>"
    config = SftFileConfig(path=jsonl(tmp_path, {"prompt": "1", "response": "2"}))
    (shown,) = load_demonstrations(config, tokenizer, 99).rows
    assert tokenizer.decode(shown.response_ids) == "2<|end|>"
    (plain,) = load_demonstrations(config.model_copy(update={"chat_template": False}), tokenizer, 99).rows
    assert tokenizer.decode(plain.response_ids) == "2<|start|>"


def test_a_bundled_model_has_one_end_of_sequence() -> None:
    """Tokenizer and generation_config both end where the template ends a turn, and an export copies them."""
    from transformers import GenerationConfig

    tokenizer = character_tokenizer()
    tokenizer.eos_token = "<|start|>"
    generation = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    agree_on_the_end(generation, tokenizer)
    assert tokenizer.eos_token == "<|end|>"
    assert generation.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")


def test_a_byte_order_mark_other_line_ends_and_empty_lines_are_read(tmp_path: Path, tokenizer: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    for content in (
        b'\xef\xbb\xbf{"prompt":"1","label":"1"}\n{"prompt":"2","label":"2"}\n',
        b'{"prompt":"1","label":"1"}\r\n\r\n{"prompt":"2","label":"2"}\r\n',
        b'\n{"prompt":"1","label":"1"}\n  \n{"prompt":"2","label":"2"}',
    ):
        rows.write_bytes(content)
        assert [p.label for p in load_prompts(PromptFileConfig(path=str(rows)), tokenizer).rows] == ["1", "2"]


def test_nested_and_typed_columns_of_parquet_keep_their_types(tmp_path: Path, tokenizer: Any) -> None:
    import numpy as np
    import pandas

    frame = pandas.DataFrame(
        {
            "prompt": [np.array(USER, dtype=object)],
            "label": np.array([7], dtype=np.int64),
            "extra": [{"list": [1, 2], "flag": True, "half": 0.5}],
        }
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    (prompt,) = load_prompts(PromptFileConfig(path=str(tmp_path / "rows.parquet")), tokenizer).rows
    assert (prompt.text, prompt.label, type(prompt.label)) == (BEGUN, 7, int)
    assert prompt.metadata == {"extra": {"list": [1, 2], "flag": True, "half": 0.5}}


def test_a_prompt_begins_with_one_bos(tmp_path: Path) -> None:
    """The template writes its own; plain text gets the tokenizer's."""
    tokenizer = character_tokenizer()
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.convert_tokens_to_ids("<|start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", bos)]
    )
    row = {"prompt": "1", "label": "2"}
    assert load(tmp_path, tokenizer, row)[0].ids[:2] == [bos, tokenizer.convert_tokens_to_ids("1")]
    plain = load(tmp_path, tokenizer, row, chat_template=False)[0].ids
    assert plain == [bos, tokenizer.convert_tokens_to_ids("1")]
