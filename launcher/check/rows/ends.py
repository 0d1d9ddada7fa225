"""Looks whether tokenizer, generation_config.json and chat template agree on what ends an answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from verst.launcher.recipe.recipe import Recipe
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.records import DataError


def ends_that_differ(recipe: Recipe, folder: Path, tokenizer: Any) -> Iterator[str]:
    """Tells in words where they do not agree. `folder` is the model's, `tokenizer` its tokenizer.

    The engines end an answer at what any of config.json, generation_config.json and the tokenizer calls eos.
    """
    named = [_eos(folder / file) for file in ("config.json", "generation_config.json")]
    own, generation = tokenizer.eos_token_id, named[1]
    if own is not None and generation and own not in generation:
        others = ", ".join(map(str, tokenizer.convert_ids_to_tokens(sorted(generation))))
        yield (
            f"model.path: eos is {tokenizer.eos_token} in the tokenizer, but {others} in generation_config.json; the "
            "engines end an answer at each, and an export keeps both"
        )
    templated = [source for source in recipe.data.train.by_name().values() if source.chat_template]
    if not templated:
        return
    with contextlib.suppress(DataError):  # a template that takes no such message; the rows tell more
        template = ChatTemplate(templated[0], tokenizer)
        *_, end = template.turn_end([{"role": "user", "content": "Hello"}], "the chat template")
        token = tokenizer.convert_ids_to_tokens(end)
        if end not in {own}.union(*named) and token not in recipe.rollout.sampling.stop:
            yield (
                f"model.path: the chat template ends a turn with {token}, at which the engines do not stop: add it to "
                "eos_token_id in generation_config.json, or to rollout.sampling.stop"
            )


def _eos(file: Path) -> set[int]:
    """The end-of-sequence tokens that a configuration names; none if it is missing or is not JSON."""
    try:
        content = msgspec.json.decode(file.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return set()
    found = content.get("eos_token_id") if isinstance(content, dict) else None
    return {token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)}
