"""Every key of each family's config.json with another value, or left out: what is trained, and what is refused.

The tests of this folder check both; `docs/model-families.md` is made from it:

    .venv/bin/python -m tests.sync.hf.model_cases > docs/model-families.md
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.sync.tiny_models import hf_config
from verst.sync.hf.model_config import model_of

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
}
LEFT_OUT = object()

# Keys of all of transformers' classes that say nothing about the function that the model computes.
NOT_OF_THE_MODEL = {
    "transformers_version",
    "architectures",
    "output_hidden_states",
    "return_dict",
    "dtype",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "id2label",
    "label2id",
    "problem_type",
}

_THETA = {"rope_theta": 10000.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
} | _THETA
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32} | _THETA
_ROPES: list[Any] = [
    {"rope_type": "default", "rope_theta": 1000000.0},
    {"rope_type": "default", "rope_theta": 12345.5},
    {"rope_type": "default", "partial_rotary_factor": 0.5} | _THETA,
    {"rope_type": "linear", "factor": 2.0} | _THETA,
    {"rope_type": "linear", "factor": 2.5} | _THETA,
    {"rope_type": "dynamic", "factor": 2.0} | _THETA,
    _LLAMA3,
    _LLAMA3 | {"low_freq_factor": 2.0},
    _LLAMA3 | {"original_max_position_embeddings": 32},
    _YARN,
    {"rope_type": "yarn", "factor": 4.0} | _THETA,
    _YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    _YARN | {"mscale": 0.7, "mscale_all_dim": 1.0},
    _YARN | {"mscale": 0.7},
    _YARN | {"mscale": 1.0},
    _YARN | {"mscale_all_dim": 0.7},
    _YARN | {"attention_factor": 1.3},
    _YARN | {"truncate": False},
]

# Another legal value, or several, of each key of the classes.
_VALUES: dict[str, list[Any]] = {
    "vocab_size": [67],
    "hidden_size": [40],
    "intermediate_size": [56],
    "num_hidden_layers": [2],
    "num_attention_heads": [4],
    "num_key_value_heads": [2],
    "head_dim": [12],
    "hidden_act": ["gelu", "relu"],
    "max_position_embeddings": [128],
    "initializer_range": [0.5],
    "rms_norm_eps": [1e-3],
    "use_cache": [False],
    "pad_token_id": [3],
    "bos_token_id": [5],
    "eos_token_id": [[1, 2]],
    "pretraining_tp": [2],
    "tie_word_embeddings": [True, False],
    "rope_parameters": _ROPES,
    "attention_bias": [True],
    "attention_dropout": [0.1],
    "mlp_bias": [True],
    "use_sliding_window": [True],
    "sliding_window": [4],
    "max_window_layers": [1],
    "layer_types": [["sliding_attention"] * 4],
    "decoder_sparse_step": [0, 2],
    "moe_intermediate_size": [24],
    "num_experts_per_tok": [1, 3],
    "num_experts": [0, 6],
    "norm_topk_prob": [True, False],
    "output_router_logits": [True],
    "router_aux_loss_coef": [0.1],
    "mlp_only_layers": [[1]],
    "n_shared_experts": [0, 3],
    "n_routed_experts": [16],
    "routed_scaling_factor": [1.0],
    "kv_lora_rank": [20],
    "q_lora_rank": [None, 20],
    "qk_rope_head_dim": [8],
    "v_head_dim": [10],
    "qk_nope_head_dim": [10],
    "n_group": [1, 2],
    "topk_group": [1, 4],
    "first_k_dense_replace": [0, 2],
    "rope_interleave": [False],
    "mlp_layer_types": [["dense", "sparse", "dense", "sparse"]],
    "index_topk": [7],
    "index_head_dim": [12],
    "index_n_heads": [4],
    "indexer_types": [["full"] * 8],
}

# Keys that are no fields of the classes, but that config.json files have and some reader reads.
_OTHERS: dict[str, list[Any]] = {
    "rope_theta": [20000.0],
    "rope_scaling": [{"type": "linear", "factor": 2.0}],
    "original_max_position_embeddings": [32],
    "partial_rotary_factor": [0.5],
    "quantization_config": [{"quant_method": "fp8", "weight_block_size": [128, 128]}],
    "model_type": ["mistral"],
}
_OTHERS_OF_DEEPSEEK: dict[str, list[Any]] = {
    "moe_layer_freq": [1, 2],
    "topk_method": ["noaux_tc", "greedy"],
    "scoring_func": ["sigmoid", "softmax"],
    "qk_head_dim": [48],
}


@dataclass(frozen=True)
class Case:
    """A config.json with one key changed."""

    family: str
    key: str
    value: Any  # LEFT_OUT: the key is not there

    @property
    def config(self) -> dict[str, Any]:
        """The whole config.json of a tiny model."""
        config = base(self.family)
        if self.value is LEFT_OUT:
            config.pop(self.key, None)
        else:
            config[self.key] = self.value
        return config

    @property
    def refusal(self) -> str | None:
        """The refusal of this config.json; None if it is trained."""
        try:
            family, config = model_of(self.config)
            family.megatron_args(config)
        except ValueError as error:
            return str(error)
        return None

    def __str__(self) -> str:
        shown = "left out" if self.value is LEFT_OUT else json.dumps(self.value)
        return f"{self.key} {shown}"


def base(family: str) -> dict[str, Any]:
    """A tiny model's config.json: what transformers writes, without what follows from other keys."""
    kind = type(hf_config(family))
    fields = {field.name for field in dataclasses.fields(kind)}
    written = hf_config(family).to_dict()
    config = {key: value for key, value in written.items() if key in fields}
    for (
        name,
        held_as,
    ) in kind.attribute_map.items():  # such as num_experts, which it writes as num_local_experts
        if name in fields:
            config[name] = written[held_as]
    for derived in ("layer_types", "mlp_layer_types", "indexer_types"):
        config.pop(derived, None)
    if family not in ("llama", "qwen3"):
        config.pop("head_dim", None)
    if family == "glm_moe_dsa":
        config |= {"index_topk_freq": 2, "index_skip_topk_offset": 1}
    return config | {"architectures": [ARCHITECTURES[family]], "model_type": family}


def keys(family: str) -> list[str]:
    """The keys of the family's class that say what the model computes."""
    found = [field.name for field in dataclasses.fields(type(hf_config(family)))]
    return [key for key in found if key not in NOT_OF_THE_MODEL]


def cases(family: str) -> Iterator[Case]:
    """Every case of a family."""
    config = base(family)
    for key in keys(family):
        for value in _VALUES[key]:
            if config.get(key) != value or key == "tie_word_embeddings":
                yield Case(family, key, value)
        if key in config:
            yield Case(family, key, LEFT_OUT)
    others = _OTHERS if family in ("llama", "qwen3", "qwen3_moe") else _OTHERS | _OTHERS_OF_DEEPSEEK
    for key, values in others.items():
        yield from (Case(family, key, value) for value in values)


def page() -> str:
    """docs/model-families.md."""
    parts = [_HEAD]
    for family, architecture in ARCHITECTURES.items():
        parts.append(
            f"\n## {family}\n\n`architectures: [{architecture}]`\n\n"
            "| key of config.json | trained | refused |\n|---|---|---|"
        )
        by_key: dict[str, list[Case]] = {}
        for case in cases(family):
            by_key.setdefault(case.key, []).append(case)
        for key, several in by_key.items():
            fine = [_shown(case) for case in several if case.refusal is None]
            refused: dict[str, list[str]] = {}
            for case in several:
                if case.refusal is not None:
                    refused.setdefault(_reason(case), []).append(_shown(case))
            why = "; ".join(f"{', '.join(values)}: {reason}" for reason, values in refused.items())
            parts.append(f"| `{key}` | {', '.join(fine) or 'the usual value'} | {why} |")
    return "\n".join(parts) + "\n"


_HEAD = """# Model families

What each family trains, and what it refuses. The tests make a tiny model for every key of config.json, with another
value or without the key, and compare its log-probabilities with transformers' in float32: they agree to 1e-4, or the
key is refused, by `verst plan` and when the trainer starts. This page is made from the same data:
`.venv/bin/python -m tests.sync.hf.model_cases > docs/model-families.md`.

- A key that config.json leaves out has the default of transformers' class for the family. "left out" below means that.
- Weights must be plain numbers in safetensors files. A folder with `quantization_config` is refused as `model.path`:
  `verst convert … --format bf16` restores the weights. It may be `rollout.model_path`.
- Tensors that the family does not read are refused by name, because they would be lost. Harmless are rotary
  frequencies (`inv_freq`), layers for multi-token prediction as `num_nextn_predict_layers` says, and an `lm_head`
  equal to the embedding that it is tied to.
- The recipe's Megatron arguments cannot change what the architecture decides.
- GLM-5 is read as SGLang reads it, where transformers differs: the norms of compressed states have `rms_norm_eps`, and
  indexers rotate as `indexer_rope_interleave` says.
- A family of your own is a [hook](hooks.md#modelfamily)."""


def _shown(case: Case) -> str:
    if case.value is LEFT_OUT:
        return "left out"
    value = case.value
    if isinstance(value, dict):  # most positions here have the usual base
        value = {key: v for key, v in value.items() if _THETA.get(key) != v}
    return f"`{json.dumps(value)}`"


def _reason(case: Case) -> str:
    words = " ".join((case.refusal or "").removeprefix("config.json: ").split())
    words = words.replace("|", "\\|")
    return words if len(words) <= 160 else words[:157] + "..."


if __name__ == "__main__":
    sys.stdout.write(page())
