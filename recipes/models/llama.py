"""Llama 2 and 3 and models of the same shape, such as SmolLM2: RMSNorm, rotary positions, GQA, SwiGLU, no biases.

The other families use its parts, which are functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verst.recipes.models import rope
from verst.sync.layout.mapping import (
    ArgumentValue,
    Family,
    HfConfig,
    Rule,
    gate_up,
    grouped_qkv,
    replicated,
    row_parallel,
    vocabulary,
)


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments for a dense model of Llama's shape.

    Raises ValueError for a configuration that they cannot express.
    """
    require(config, "attention_bias", False)
    require(config, "mlp_bias", False)
    require(config, "hidden_act", "silu")
    return {
        **decoder_args(config),
        "group-query-attention": True,
        "num-query-groups": query_groups(config),
        "kv-channels": even_head_size(config),
        **rope.grouped_args(config),
    }


def decoder_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """The arguments that all families share: sizes, RMSNorm, SwiGLU, no biases, no dropout, rotary positions."""
    args: dict[str, ArgumentValue] = {
        "num-layers": config["num_hidden_layers"],
        "hidden-size": config["hidden_size"],
        "ffn-hidden-size": config["intermediate_size"],
        "num-attention-heads": config["num_attention_heads"],
        "normalization": "RMSNorm",
        "norm-epsilon": config["rms_norm_eps"],
        "position-embedding-type": "rope",
        "swiglu": True,
        "disable-bias-linear": True,
        "hidden-dropout": 0.0,
        "attention-dropout": 0.0,
        "vocab-size": config["vocab_size"],
        # Together with --vocab-size, this pads to a multiple of the tensor parallel size and no further.
        "make-vocab-size-divisible-by": 1,
        "max-position-embeddings": config["max_position_embeddings"],
    }
    if not config.get("tie_word_embeddings", False):
        args["untie-embeddings-and-output-weights"] = True
    return args


def require(config: HfConfig, key: str, value: Any, why: str = "") -> None:
    """Raises ValueError if `key` is present and has another value."""
    if config.get(key, value) != value:
        because = f": {why}" if why else ""
        raise ValueError(
            f"config.json: {key} = {config[key]!r} is not supported here, only {value!r}{because}"
        )


def head_size(config: HfConfig) -> int:
    """Width of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def even_head_size(config: HfConfig) -> int:
    """The same. Raises ValueError for a head that rotary positions cannot turn, pair by pair."""
    size, heads = head_size(config), config["num_attention_heads"]
    if size < 2 or size % 2:
        whence = "" if config.get("head_dim") else f" (hidden_size / num_attention_heads, which is {heads})"
        raise ValueError(
            f"config.json: head_dim = {size}{whence} is no even number, and rotary positions need one"
        )
    return size


def query_groups(config: HfConfig) -> int:
    """Number of key/value heads. Raises ValueError if they cannot share the queries evenly."""
    heads = config["num_attention_heads"]
    groups = int(config.get("num_key_value_heads") or heads)
    if heads % groups:
        raise ValueError(
            f"config.json: num_attention_heads = {heads} is no multiple of num_key_value_heads = {groups}"
        )
    return groups


def embedding(config: HfConfig) -> Sequence[Rule]:
    """Rules of the first stage."""
    names = ("embedding.word_embeddings.weight",)
    return [vocabulary(names, "model.embed_tokens.weight", config["vocab_size"], config["hidden_size"])]


def head(config: HfConfig) -> Sequence[Rule]:
    """Rules of the last stage.

    A tied output layer is the embedding; Megatron keeps a second copy of it only if the last stage is not the first.
    """
    hidden = config["hidden_size"]
    output = "model.embed_tokens.weight" if config.get("tie_word_embeddings", False) else "lm_head.weight"
    return [
        replicated("decoder.final_layernorm.weight", "model.norm.weight", (hidden,)),
        vocabulary("output_layer.weight", output, config["vocab_size"], hidden),
    ]


def attention(config: HfConfig, i: int) -> list[Rule]:
    """Rules of the norm, the grouped QKV and the output projection in layer i."""
    hidden, width, groups = config["hidden_size"], head_size(config), query_groups(config)
    heads = config["num_attention_heads"]
    hf = f"model.layers.{i}"
    return [
        replicated(
            ("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight"),
            f"{hf}.input_layernorm.weight",
            (hidden,),
        ),
        grouped_qkv(
            "self_attention.linear_qkv.weight",
            f"{hf}.self_attn.q_proj.weight",
            f"{hf}.self_attn.k_proj.weight",
            f"{hf}.self_attn.v_proj.weight",
            groups,
            heads // groups,
            width,
            hidden,
        ),
        row_parallel(
            "self_attention.linear_proj.weight", f"{hf}.self_attn.o_proj.weight", hidden, heads * width
        ),
    ]


def dense_mlp(config: HfConfig, i: int) -> list[Rule]:
    """Rules of the norm and the SwiGLU in layer i."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    hf = f"model.layers.{i}"
    return [
        replicated(
            ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
            f"{hf}.post_attention_layernorm.weight",
            (hidden,),
        ),
        gate_up(
            "mlp.linear_fc1.weight", f"{hf}.mlp.gate_proj.weight", f"{hf}.mlp.up_proj.weight", ffn, hidden
        ),
        row_parallel("mlp.linear_fc2.weight", f"{hf}.mlp.down_proj.weight", hidden, ffn),
    ]


def layer(config: HfConfig, i: int) -> Sequence[Rule]:
    """Rules of decoder layer i."""
    return attention(config, i) + dense_mlp(config, i)


FAMILY = Family(
    "llama",
    ("LlamaForCausalLM",),
    megatron_args,
    embedding,
    head,
    layer,
    model_types=("llama",),
    scored_as="LlamaForSequenceClassification",
)
