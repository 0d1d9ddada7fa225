"""Pairs of answers in the forms that other tools write: the same prompt, and the tokens each side is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.data.test_turns import CHATML, UNMARKED, WITH_TOOLS
from verst.runtime.algorithms.stages import PairFileConfig
from verst.runtime.data.demonstrations import Demonstration
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.preferences import Pair, load_pairs
from verst.runtime.data.records import DataError

ASKED = {"role": "user", "content": "one"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(
    folder: Path, *rows: dict[str, Any], template: str = UNMARKED, most: int = 999, **keys: Any
) -> list[Pair]:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(PairFileConfig(path=str(path), **keys), tokenizer, most).rows


def texts(shown: Demonstration) -> tuple[str, list[str]]:
    """The prompt, and each stretch of tokens that is trained on."""
    tokenizer = character_tokenizer()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shown.loss_mask, [0]])))
    trained = [
        tokenizer.decode(shown.response_ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    return tokenizer.decode(shown.prompt_ids), trained


TEXT = {"prompt": "one", "chosen": "1", "rejected": "2"}
FORMS = {
    "texts": (TEXT, {}),
    "messages": ({"prompt": [ASKED], "chosen": [said("1")], "rejected": [said("2")]}, {}),
    "a message without a list": ({"prompt": "one", "chosen": said("1"), "rejected": said("2")}, {}),
    "answers that repeat the prompt": (
        {"prompt": "one", "chosen": [ASKED, said("1")], "rejected": [ASKED, said("2")]},
        {},
    ),
    "conversations": ({"chosen": [ASKED, said("1")], "rejected": [ASKED, said("2")]}, {"prompt_key": None}),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "one"}],
            "chosen": {"from": "gpt", "value": "1"},
            "rejected": {"from": "gpt", "value": "2"},
        },
        {"prompt_key": "conversations"},
    ),
    "own names": (
        {"question": "one", "better": "1", "answers": {"worse": "2"}},
        {"prompt_key": "question", "chosen_key": "better", "rejected_key": "answers.worse"},
    ),
}


@pytest.mark.parametrize("template", [CHATML, UNMARKED])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_pair_are_the_same_tokens(form: str, template: str, tmp_path: Path) -> None:
    row, keys = FORMS[form]
    (pair,) = load(tmp_path, row, template=template, **keys)
    prompt = "<|start|>user:one<|end|> <|start|>assistant:"
    assert texts(pair.chosen) == (prompt, ["1<|end|>"])
    assert texts(pair.rejected) == (prompt, ["2<|end|>"])
    assert pair.length == len(pair.chosen.prompt_ids) * 2 + 4


def test_a_system_message_of_the_recipe_comes_before_both(tmp_path: Path) -> None:
    for row, keys in FORMS.values():
        (pair,) = load(tmp_path, row, system="be brief", **keys)
        assert texts(pair.chosen)[0].startswith("<|start|>system:be brief<|end|> <|start|>user:one")
        assert pair.chosen.prompt_ids.tolist() == pair.rejected.prompt_ids.tolist()


def test_turns_of_the_common_beginning_are_not_trained_on(tmp_path: Path) -> None:
    """The prompt of conversations is what both have in common, with its turns of the assistant."""
    before = [ASKED, said("1"), {"role": "user", "content": "two"}]
    row = {"chosen": [*before, said("2")], "rejected": [*before, said("3")]}
    for template in (CHATML, UNMARKED):
        (pair,) = load(tmp_path, row, template=template, prompt_key=None)
        assert texts(pair.chosen)[1] == ["2<|end|>"]
        assert texts(pair.rejected)[1] == ["3<|end|>"]
        assert texts(pair.chosen)[0].endswith(
            "assistant:1<|end|> <|start|>user:two<|end|> <|start|>assistant:"
        )


def test_an_answer_may_have_several_turns_with_tools(tmp_path: Path) -> None:
    rejected = [WITH_TOOLS[0], said("4")]
    (pair,) = load(tmp_path, {"chosen": WITH_TOOLS, "rejected": rejected}, template=CHATML, prompt_key=None)
    assert texts(pair.chosen)[1] == ["*why*=add<|end|>", "*so*it is 3<|end|>"]
    assert texts(pair.rejected)[1] == ["4<|end|>"]


def test_a_pair_longer_than_a_micro_batch_is_left_out(tmp_path: Path) -> None:
    long = TEXT | {"rejected": "2" * 9}
    length = load(tmp_path, TEXT)[0].length
    assert len(load(tmp_path, TEXT, long, most=length)) == 1
    assert len(load(tmp_path, TEXT, long, max_tokens=length)) == 1
    with pytest.raises(DataError, match=f"no usable row; 1 are longer than {length} tokens"):
        load(tmp_path, long, most=length)


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        (TEXT | {"rejected": "1"}, {}, "'chosen' and 'rejected' are the same, which says nothing"),
        (TEXT | {"chosen": 3}, {}, "'chosen' is '3', neither a text nor a list of messages"),
        (TEXT, {"prompt_key": None}, "'chosen' is a text; without prompt_key a list of messages is needed"),
        (
            {"chosen": [ASKED, said("1")], "rejected": [{**ASKED, "content": "two"}, said("2")]},
            {"prompt_key": None},
            "differ in their first message, so they have no prompt in common",
        ),
        (
            {"chosen": [ASKED, said("1")], "rejected": [ASKED, said("1"), ASKED, said("2")]},
            {"prompt_key": None},
            "'chosen' ends where the other answer goes on",
        ),
        (
            {
                "chosen": [said("a"), ASKED, said("1")],
                "rejected": [said("a"), {**ASKED, "content": "x"}, said("2")],
            },
            {"prompt_key": None},
            "'chosen': after the prompt it begins with a message of the role 'user'",
        ),
        (
            {
                "prompt": "one",
                "chosen": [ASKED, said("1")],
                "rejected": [{**ASKED, "content": "two"}, said("2")],
            },
            {},
            "'rejected' begins with a message of the role 'user', and not with the prompt in 'prompt'",
        ),
        (TEXT | {"prompt": [ASKED, said("0")]}, {}, "'prompt' ends with a message of the assistant"),
    ],
)
def test_what_is_no_pair_is_refused_with_its_place(
    row: dict[str, Any], keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, row, **keys)
    assert str(error.value).startswith(f"{tmp_path}/rows.jsonl:1")
    assert message in str(error.value)
