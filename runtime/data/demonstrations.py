"""Reads demonstrations for supervised steps: prompts with the responses to imitate."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from verst.runtime.algorithms.config import WarmStartConfig
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.prompts import prompt_messages, render
from verst.runtime.data.records import DataError, column, read_records


class Demonstration(msgspec.Struct, kw_only=True):
    """A prompt and its response, which ends with the end-of-sequence token."""

    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R]


def load_demonstrations(
    config: WarmStartConfig, prompts: PromptFileConfig, tokenizer: Any
) -> list[Demonstration]:
    """Reads and tokenises `config.path`. Prompts are rendered as those of training, which `prompts` configures.

    Raises DataError for a faulty row, and when there is none.
    """
    style = prompts.model_copy(update={"path": config.path, "prompt_key": config.prompt_key})
    demonstrations = []
    for record in read_records(config.path):
        text = render(prompt_messages(record, style), style, tokenizer)
        response = column(record, config.response_key)
        if not isinstance(response, str):
            raise DataError(f"{record[0]}: {config.response_key!r} is {response!r}, not a string")
        ids = tokenizer(text, add_special_tokens=not style.chat_template)["input_ids"]
        answer = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        demonstrations.append(
            Demonstration(
                prompt_ids=np.array(ids, dtype=np.int32), response_ids=np.array(answer, dtype=np.int32)
            )
        )
    if not demonstrations:
        raise DataError(f"{config.path}: the file has no demonstrations")
    return demonstrations
