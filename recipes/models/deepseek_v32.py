"""DeepSeek-V3.2 and models of its shape: DeepSeek-V3 with sparse attention.

An indexer in each layer chooses the tokens that are attended to (`runtime/trainer/model/sparse_attention.py`). Indexers
keep the checkpoint's weights, because no gradient passes through their choice. The original rotates their queries and
keys with a Hadamard matrix. This is left out here, as in transformers: the matrix is orthogonal, so no score depends on
it.
"""

from __future__ import annotations

from collections.abc import Sequence

from verst.recipes.models import deepseek_v3, llama
from verst.sync.layout.mapping import ArgumentValue, Family, HfConfig, Rule, replicated
from verst.sync.replay.selection import choice_sources

_DEFAULT_EXPERTS = 256  # num_experts of transformers' class


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments. Raises ValueError for a configuration that they cannot express."""
    sources = choice_sources(config)
    if sources != tuple(range(len(sources))):
        raise ValueError(
            "config.json: index_topk_freq or index_topk_pattern lets layers share a choice, but in this architecture "
            "each layer has an indexer; leave them out"
        )
    llama.require(
        config, "rms_norm_eps", 1e-6, "transformers' norms of the compressed states have 1e-6 in any case"
    )
    _refuse_two_counts(config)
    return sparse_args(config)


def _refuse_two_counts(config: HfConfig) -> None:
    """Raises ValueError for experts that are counted twice, differently.

    transformers' class makes as many experts as num_experts says and a router for n_routed_experts. Checkpoints and
    SGLang have n_routed_experts alone: a config.json without num_experts is one of those, completed with a default.
    """
    count, routed = config.get("num_experts", _DEFAULT_EXPERTS), config["n_routed_experts"]
    if count not in (routed, _DEFAULT_EXPERTS):
        raise ValueError(
            f"config.json: num_experts = {count} and n_routed_experts = {routed}: transformers reads both, the engines "
            "only n_routed_experts. Make them equal, or leave num_experts out"
        )


def sparse_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments for DeepSeek-V3's layers with sparse attention.

    Raises ValueError for a configuration that they cannot express.
    """
    types = [
        "sparse" if deepseek_v3.is_sparse(config, i) else "dense" for i in range(config["num_hidden_layers"])
    ]
    if config.get("mlp_layer_types", types) != types:
        raise ValueError("config.json: mlp_layer_types and first_k_dense_replace name different layers")
    return {
        **deepseek_v3.latent_args(config),
        "transformer-impl": "local",  # Transformer Engine has no sparse attention
        "cp-comm-type": "allgather",  # the only one that Megatron's sparse attention supports
        "experimental-attention-variant": "dsa",
        "dsa-indexer-n-heads": config["index_n_heads"],
        "dsa-indexer-head-dim": config["index_head_dim"],
        "dsa-indexer-topk": config["index_topk"],
        "dsa-indexer-k-norm-epsilon": 1e-6,
        "no-dsa-indexer-rotate-activation": True,
        # As SGLang reads it; transformers always rotates halves in the indexer, and neighbours in attention.
        "dsa-indexer-rope-interleaved": bool(config.get("indexer_rope_interleave", False)),
    }


def frozen(config: HfConfig, i: int) -> Sequence[Rule]:
    """Rules of the router's bias and the indexer in layer i."""
    heads, width = config["index_n_heads"], config["index_head_dim"]
    own, hf = "self_attention.core_attention.indexer", f"model.layers.{i}.self_attn.indexer"
    hidden = config["hidden_size"]
    return [
        *deepseek_v3.frozen(config, i),
        replicated(f"{own}.linear_wq_b.weight", f"{hf}.wq_b.weight", (heads * width, config["q_lora_rank"])),
        replicated(f"{own}.linear_wk.weight", f"{hf}.wk.weight", (width, hidden)),
        replicated(f"{own}.k_norm.weight", f"{hf}.k_norm.weight", (width,)),
        replicated(f"{own}.k_norm.bias", f"{hf}.k_norm.bias", (width,)),
        replicated(f"{own}.linear_weights_proj.weight", f"{hf}.weights_proj.weight", (heads, hidden)),
    ]


def engine_fault(config: HfConfig) -> str | None:
    """As for DeepSeek-V3, and the keys of the indexer; SGLang reads the configuration as one of DeepSeek-V3."""
    own = ("index_topk", "index_n_heads", "index_head_dim", "max_position_embeddings")
    return deepseek_v3.missing(config, own) or deepseek_v3.engine_fault(config)


FAMILY = Family(
    "deepseek_v32",
    ("DeepseekV32ForCausalLM",),
    megatron_args,
    llama.embedding,
    llama.head,
    deepseek_v3.layer,
    engine_fault,
    frozen=frozen,
    together=deepseek_v3.together,
    model_types=("deepseek_v32",),
)
