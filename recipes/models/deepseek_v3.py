"""DeepSeek-V3 and models of its shape, such as Kimi-K2's text model.

Its layers have latent attention (arXiv:2412.19437, section 2.1.1). The first layers are dense; the others have a shared
expert and routed experts. The router scores with a sigmoid, chooses from a limited number of groups, and corrects its
choice by a bias per expert.

A checkpoint's layers for multi-token prediction, after the last decoder layer, are neither read nor written. The
router's bias keeps the checkpoint's values: it balances pre-training and is not a weight of the policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from verst.recipes.models import llama, qwen3_moe, rope
from verst.sync.layout.mapping import (
    ArgumentValue,
    Family,
    HfConfig,
    Rule,
    column_parallel,
    gate_up,
    replicated,
    row_parallel,
)


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments. Raises ValueError for a configuration that they cannot express."""
    llama.require(
        config, "rms_norm_eps", 1e-6, "transformers' norms of the compressed states have 1e-6 in any case"
    )
    return latent_args(config)


def latent_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments for layers of latent attention, with any epsilon of the norms.

    Raises ValueError for a configuration that they cannot express.
    """
    _require_known(config)
    if not config.get("q_lora_rank"):
        raise ValueError(
            "config.json: q_lora_rank is not set, but Megatron's latent attention cannot normalise the keys and values "
            "without the queries"
        )
    return {
        **llama.decoder_args(config),
        "multi-latent-attention": True,
        "q-lora-rank": config["q_lora_rank"],
        "kv-lora-rank": config["kv_lora_rank"],
        "qk-head-dim": config["qk_nope_head_dim"],
        "qk-pos-emb-head-dim": config["qk_rope_head_dim"],
        "v-head-dim": config["v_head_dim"],
        "kv-channels": config["v_head_dim"],
        "qk-layernorm": True,
        **rope.latent_args(config),
        **_router_args(config),
    }


def _require_known(config: HfConfig) -> None:
    for key, value in {
        "attention_bias": False,
        "hidden_act": "silu",
        "rope_interleave": True,
        "norm_topk_prob": True,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,  # transformers does not read it
        # Both follow from other keys. transformers uses what is written.
        "head_dim": config["qk_rope_head_dim"],
        "qk_head_dim": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
    }.items():
        llama.require(config, key, value)
    heads = config["num_attention_heads"]
    llama.require(config, "num_key_value_heads", heads, f"num_attention_heads is {heads}")


def _router_args(config: HfConfig) -> dict[str, ArgumentValue]:
    topk, groups, chosen_groups = config["num_experts_per_tok"], config["n_group"] or 1, config["topk_group"]
    if topk < 2:
        raise ValueError(
            f"config.json: num_experts_per_tok = {topk}: Megatron does not normalise the weight of a single expert; "
            "must be at least 2"
        )
    _require_groups(config["n_routed_experts"], groups, chosen_groups)
    args: dict[str, ArgumentValue] = {
        "num-experts": config["n_routed_experts"],
        "moe-router-topk": topk,
        "moe-ffn-hidden-size": config["moe_intermediate_size"],
        "moe-layer-freq": f"[{','.join(str(int(s)) for s in _sparse_layers(config))}]",
        "moe-router-score-function": "sigmoid",
        "moe-router-enable-expert-bias": True,
        "moe-router-bias-update-rate": 0.0,
        "moe-router-topk-scaling-factor": config["routed_scaling_factor"],
        "moe-router-dtype": "fp32",
        # Reinforcement learning optimises the policy only; a recipe can turn balancing on again.
        "moe-router-load-balancing-type": "none",
        "moe-aux-loss-coeff": 0.0,
    }
    if groups > 1 and chosen_groups < groups:
        # The model ranks a group by its two best experts, Megatron by its best topk // chosen_groups.
        if topk // chosen_groups != 2:
            raise ValueError(
                f"config.json: num_experts_per_tok = {topk} with n_group = {groups}, topk_group = {chosen_groups}: "
                "Megatron would rank "
                f"groups by their {topk // chosen_groups} best experts, the model by 2"
            )
        args |= {"moe-router-num-groups": groups, "moe-router-group-topk": chosen_groups}
    if config.get("n_shared_experts"):
        args["moe-shared-expert-intermediate-size"] = _shared_width(config)
    return args


def _require_groups(experts: int, groups: int, chosen: int) -> None:
    if chosen > groups or experts % groups or (groups > 1 and experts // groups < 2):
        raise ValueError(
            f"config.json: n_routed_experts = {experts}, n_group = {groups}, topk_group = {chosen}: groups must be "
            "equal, of at least two experts, and no more can be chosen than there are"
        )


def _sparse_layers(config: HfConfig) -> list[bool]:
    return [is_sparse(config, i) for i in range(config["num_hidden_layers"])]


def is_sparse(config: HfConfig, i: int) -> bool:
    """Whether layer i has experts."""
    return i >= (config.get("first_k_dense_replace") or 0)


def _shared_width(config: HfConfig) -> int:
    return int(config["moe_intermediate_size"] * config["n_shared_experts"])


def attention(config: HfConfig, i: int) -> list[Rule]:
    """Rules of the latent attention in layer i.

    Names are of Megatron's local layers first, then of Transformer Engine's, which fuse the norms of the compressed
    queries, keys and values into the projections after them.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    hf, own = f"model.layers.{i}", "self_attention"
    return [
        replicated("input_layernorm.weight", f"{hf}.input_layernorm.weight", (hidden,)),
        replicated(f"{own}.linear_q_down_proj.weight", f"{hf}.self_attn.q_a_proj.weight", (q_rank, hidden)),
        replicated(
            f"{own}.linear_kv_down_proj.weight",
            f"{hf}.self_attn.kv_a_proj_with_mqa.weight",
            (kv_rank + rope, hidden),
        ),
        replicated(
            (f"{own}.q_layernorm.weight", f"{own}.linear_q_up_proj.layer_norm_weight"),
            f"{hf}.self_attn.q_a_layernorm.weight",
            (q_rank,),
        ),
        column_parallel(
            f"{own}.linear_q_up_proj.weight", f"{hf}.self_attn.q_b_proj.weight", heads * (nope + rope), q_rank
        ),
        replicated(
            (f"{own}.kv_layernorm.weight", f"{own}.linear_kv_up_proj.layer_norm_weight"),
            f"{hf}.self_attn.kv_a_layernorm.weight",
            (kv_rank,),
        ),
        column_parallel(
            f"{own}.linear_kv_up_proj.weight",
            f"{hf}.self_attn.kv_b_proj.weight",
            heads * (nope + value),
            kv_rank,
        ),
        row_parallel(f"{own}.linear_proj.weight", f"{hf}.self_attn.o_proj.weight", hidden, heads * value),
    ]


def experts(config: HfConfig, i: int) -> list[Rule]:
    """Rules of the norm, the router, the experts and the shared expert in layer i."""
    rules = qwen3_moe.experts(config, i, config["n_routed_experts"])
    if config.get("n_shared_experts"):
        hidden, width = config["hidden_size"], _shared_width(config)
        hf = f"model.layers.{i}.mlp.shared_experts"
        rules += [
            gate_up(
                "mlp.shared_experts.linear_fc1.weight",
                f"{hf}.gate_proj.weight",
                f"{hf}.up_proj.weight",
                width,
                hidden,
            ),
            row_parallel("mlp.shared_experts.linear_fc2.weight", f"{hf}.down_proj.weight", hidden, width),
        ]
    return rules


def layer(config: HfConfig, i: int) -> Sequence[Rule]:
    """Rules of decoder layer i."""
    return attention(config, i) + (experts(config, i) if is_sparse(config, i) else llama.dense_mlp(config, i))


def frozen(config: HfConfig, i: int) -> Sequence[Rule]:
    """The rule of the bias that corrects the router's choice in layer i."""
    if not is_sparse(config, i):
        return []
    name = f"model.layers.{i}.mlp.gate.e_score_correction_bias"
    return [replicated("mlp.router.expert_bias", name, (config["n_routed_experts"],))]


def together(name: str) -> str:
    """The two down-projections of a layer go together, because SGLang fuses them."""
    return name.replace(".q_a_proj.", ".kv_a_proj_with_mqa.")


def engine_fault(config: HfConfig) -> str | None:
    """A fault if config.json lacks keys that SGLang 0.5.17 reads and has no default for."""
    return missing(config, ("topk_method", "scoring_func", "moe_layer_freq"))


def missing(config: HfConfig, keys: Sequence[str]) -> str | None:
    """A fault that names those of the keys that config.json lacks."""
    lacking = [key for key in keys if key not in config]
    if not lacking:
        return None
    shown = {"topk_method": '"noaux_tc"', "scoring_func": '"sigmoid"', "moe_layer_freq": "1"}
    wanted = ", ".join(f"{key}: {shown[key]}" if key in shown else key for key in lacking)
    return f"its config.json lacks keys that SGLang needs and has no default for: add {wanted}"


FAMILY = Family(
    "deepseek_v3",
    ("DeepseekV3ForCausalLM",),
    megatron_args,
    llama.embedding,
    llama.head,
    layer,
    engine_fault,
    frozen=frozen,
    together=together,
    model_types=("deepseek_v3", "kimi_k2"),
)
