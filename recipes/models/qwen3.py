"""Dense Qwen3 models: Llama's shape, with an RMSNorm over each query and key head."""

from __future__ import annotations

from collections.abc import Sequence

from verst.recipes.models import llama
from verst.sync.layout.mapping import ArgumentValue, Family, HfConfig, Rule, replicated


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments. Raises ValueError for a configuration that they cannot express."""
    if config.get("use_sliding_window", False):
        raise ValueError("config.json: use_sliding_window = true is not supported here, only false")
    for kind in config.get("layer_types") or ():
        if kind != "full_attention":
            raise ValueError(
                f"config.json: layer_types has {kind!r}; only 'full_attention' is supported here"
            )
    return {**llama.megatron_args(config), "qk-layernorm": True}


def attention(config: HfConfig, i: int) -> list[Rule]:
    """Rules of the attention in layer i, with its query and key norms."""
    width = (llama.head_size(config),)
    hf = f"model.layers.{i}.self_attn"
    return [
        *llama.attention(config, i),
        replicated("self_attention.q_layernorm.weight", f"{hf}.q_norm.weight", width),
        replicated("self_attention.k_layernorm.weight", f"{hf}.k_norm.weight", width),
    ]


def layer(config: HfConfig, i: int) -> Sequence[Rule]:
    """Rules of decoder layer i."""
    return attention(config, i) + llama.dense_mlp(config, i)


FAMILY = Family(
    "qwen3",
    ("Qwen3ForCausalLM",),
    megatron_args,
    llama.embedding,
    llama.head,
    layer,
    model_types=("qwen3",),
    scored_as="Qwen3ForSequenceClassification",
)
