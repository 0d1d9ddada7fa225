"""How many tokens SGLang takes: its own rules, so that `verst plan` and the run tell what it would refuse or cut.

Of a context of C tokens (`ModelConfig.context_len`, or the whole cache if that is smaller), SGLang's scheduler takes
prompts shorter than C - 6 (`tp_worker.get_worker_info`, `managers/utils.validate_input_length`), and cuts
max_new_tokens, without a word, to C - 2 - prompt (`scheduler.init_req_max_new_tokens`). Its server refuses a request
for more than C tokens of both (`tokenizer_manager._validate_one_request`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verst.runtime.messages.model_config import ArgumentValue

_PROMPT_MARGIN = 7
_TOTAL_MARGIN = 2
# In the order in which SGLang looks for them (`hf_transformers/common.get_context_length`).
_KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")


def context_length(description: Mapping[str, Any], sglang: Mapping[str, ArgumentValue]) -> int | None:
    """The engine's context in tokens; None if neither config.json nor the recipe says it.

    `description` is the config.json of the engine's model, `sglang` the recipe's `rollout.sglang`.
    """
    given = {name.replace("_", "-"): value for name, value in sglang.items()}
    context = given.get("context-length") or _of_model(description)
    cache = given.get("max-total-tokens")
    known = [int(str(number)) for number in (context, cache) if number]
    return min(known) if known else None


def longest_sample(context: int) -> int:
    """The most tokens of prompt and answer together."""
    return context - _TOTAL_MARGIN


def longest_prompt(context: int, new: int) -> int:
    """The most tokens of a prompt that can be answered with `new` tokens."""
    return min(context - _PROMPT_MARGIN, longest_sample(context) - new)


def _of_model(description: Mapping[str, Any]) -> int | None:
    text = description.get("text_config")
    config: Mapping[str, Any] = text if isinstance(text, dict) else description
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor: float = 1
    # Transformers gives the other kinds an original_max_position_embeddings, at which SGLang ignores the factor.
    if rope.get("rope_type", rope.get("type")) in ("linear", "dynamic"):
        factor = 1 if "original_max_position_embeddings" in rope else rope.get("factor", 1)
    for key in _KEYS:
        if isinstance(config.get(key), int):
            return int(factor * config[key])
    return None
