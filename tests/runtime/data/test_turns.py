"""Of a conversation exactly the assistant's turns are trained on, each with what ends it, whatever the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verst.runtime.algorithms.stages import SftFileConfig
from verst.runtime.data.demonstrations import Demonstration, load_demonstrations
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.records import DataError

# As ChatML is written, in the characters of the toy tokenizer: a header, the text, an end, and a space after it.
CHATML = (
    "{% if tools %}<|start|>tools: {{ tools | length }}<|end|> {% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}:"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}*{{ m.reasoning_content }}*{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}={{ call.function.name }}{% endfor %}<|end|>{% endgeneration %} "
    "{% else %}{{ m.content }}<|end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Writes the reasoning of the last message alone, as many templates of reasoning models do.
LAST_REASONING = UNMARKED.replace(
    "{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}"
)
# Turns are separated by what begins the next one, and nothing ends the last.
OPEN = (
    "{% for m in messages %}{{ '<|start|>' if m.role == 'user' else '<unk>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<unk>{% endif %}"
)
TWO_TURNS = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "2"},
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add"}}],
}
WITH_TOOLS = [
    {"role": "user", "content": "one"},
    {**CALL, "reasoning_content": "why"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "it is 3", "reasoning_content": "so"},
]


def load(folder: Path, template: str | None, row: dict[str, Any], **keys: Any) -> tuple[Demonstration, Any]:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    config = SftFileConfig(path=str(path), messages_key="messages", **keys)
    return load_demonstrations(config, tokenizer, 999).rows[0], tokenizer


def trained(shown: Demonstration, tokenizer: Any) -> list[str]:
    """The texts that are trained on, one for each stretch of tokens under the mask."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shown.loss_mask, [0]])))
    return [tokenizer.decode(shown.response_ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("template", [CHATML, UNMARKED])
@pytest.mark.parametrize(
    ("row", "keys", "turns"),
    [
        ({"messages": TWO_TURNS}, {}, ["1<|end|>", "2<|end|>"]),
        ({"messages": TWO_TURNS}, {"train_on": "last"}, ["2<|end|>"]),
        ({"messages": TWO_TURNS[:-1]}, {}, ["1<|end|>"]),
        ({"messages": TWO_TURNS[1:], "tools": [{"name": "add"}]}, {}, ["1<|end|>", "2<|end|>"]),
        ({"messages": WITH_TOOLS, "tools": "[{}]"}, {}, ["*why*=add<|end|>", "*so*it is 3<|end|>"]),
    ],
)
def test_the_turns_of_the_assistant_are_trained_on(
    tmp_path: Path, template: str, row: dict[str, Any], keys: dict[str, Any], turns: list[str]
) -> None:
    shown, tokenizer = load(tmp_path, template, row, **keys)
    assert trained(shown, tokenizer) == turns
    whole = tokenizer.apply_chat_template(
        row["messages"], tools=[{}] if "tools" in row else None, tokenize=False
    )
    ids = [*shown.prompt_ids.tolist(), *shown.response_ids.tolist()]
    assert ids == tokenizer(whole, add_special_tokens=False)["input_ids"][: len(ids)]
    assert shown.loss_mask[0] == shown.loss_mask[-1] == 1


def test_the_mask_is_the_one_of_transformers_where_the_template_has_marks(tmp_path: Path) -> None:
    shown, tokenizer = load(tmp_path, CHATML, {"messages": TWO_TURNS})
    theirs = tokenizer.apply_chat_template(
        TWO_TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    mine = [0] * len(shown.prompt_ids) + shown.loss_mask.tolist()
    assert mine == theirs[: len(mine)]
    assert not any(theirs[len(mine) :])


def test_what_a_model_would_not_have_written_is_not_trained_on(tmp_path: Path) -> None:
    """The template leaves the reasoning of the first turn out, though the model wrote it."""
    reasoned = [{**m, "reasoning_content": "why"} if m["role"] == "assistant" else m for m in TWO_TURNS]
    shown, tokenizer = load(tmp_path, LAST_REASONING, {"messages": reasoned}, train_on="last")
    assert trained(shown, tokenizer) == ["*why*2<|end|>"]
    header = CHATML.replace(
        "{% if add_generation_prompt %}<|start|>assistant:", "{% if add_generation_prompt %}?:"
    )
    with pytest.raises(
        DataError, match=r"rows.jsonl:1, message 3: the chat template writes this turn .* otherwise"
    ):
        load(
            tmp_path,
            header.replace("generation %}", "if true %}").replace("endif true", "endif"),
            {"messages": TWO_TURNS},
        )


def test_a_turn_ends_with_the_special_token_after_it_or_with_the_end_of_sequence(tmp_path: Path) -> None:
    shown, tokenizer = load(tmp_path, OPEN, {"messages": TWO_TURNS[1:]})
    assert trained(shown, tokenizer) == ["1<|start|>", "2<|end|>"]


def test_without_a_template_only_one_last_turn_can_be_told_apart(tmp_path: Path) -> None:
    row = {"messages": TWO_TURNS[1:3]}
    shown, tokenizer = load(tmp_path, None, row, chat_template=False)
    assert (tokenizer.decode(shown.prompt_ids), trained(shown, tokenizer)) == ("one", ["1<|end|>"])
    with pytest.raises(DataError, match="without a chat template only the last message can be trained on"):
        load(tmp_path, None, {"messages": TWO_TURNS}, chat_template=False)


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "1", "response": "2" * n}) + "\n" for n in (1, 9, 2)))
    tokenizer = character_tokenizer()
    config = SftFileConfig(path=str(path), chat_template=False, max_tokens=5)
    found = load_demonstrations(config, tokenizer, 999)
    assert ([row.length for row in found.rows], found.too_long) == ([3, 4], 1)
    assert load_demonstrations(config, tokenizer, 3).too_long == 2
    with pytest.raises(DataError, match=r"no usable row; 3 are longer than 2 tokens"):
        load_demonstrations(config, tokenizer, 2)
