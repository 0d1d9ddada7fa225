"""What a reward function gets."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from verst.runtime.hooks.score import Score


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to one prompt: `Answer(text="7", label="7")` is enough for the test of a reward."""

    text: str  # everything after the prompt, decoded, without special tokens
    label: Any = None  # of the prompt's row
    metadata: dict[str, Any] = {}  # the row's other columns, and the content of its column `metadata`
    prompt: str = ""  # as rendered
    ids: list[int] = []  # the response tokens, those of tools and users between the turns included
    finish: Literal["stop", "length"] = "stop"  # "length": it was cut off at a limit
    turns: int = 1  # how often the policy was asked
    messages: list[
        dict[str, Any]
    ] = []  # the whole chat, prompt included, in OpenAI's form; [] if it is not known
    evaluation: bool = False
    score: Score | None = None  # what `rollout.reward` gave; a group reward alone gets it
    source: str = ""  # the name of the prompt's source, if the recipe has `data.train.sources`
