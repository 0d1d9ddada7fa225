"""Qwen3 mixture of experts: Qwen3's attention, softmax top-k routing over SwiGLU experts, no shared expert."""

from __future__ import annotations

from collections.abc import Sequence

from verst.recipes.models import llama, qwen3
from verst.sync.layout.mapping import ArgumentValue, Family, HfConfig, Rule, gate_up, replicated, row_parallel


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments. Raises ValueError for what they cannot express."""
    args = qwen3.megatron_args(config)
    args |= {
        "num-experts": num_experts(config),
        "moe-router-topk": config["num_experts_per_tok"],
        "moe-ffn-hidden-size": config["moe_intermediate_size"],
        "moe-router-score-function": "softmax",
        # Reinforcement learning optimises the policy alone; a recipe may turn balancing on again.
        "moe-router-load-balancing-type": "none",
        "moe-aux-loss-coeff": 0.0,
    }
    # Softmax over the chosen logits equals the softmax over all renormalised to the chosen
    # (norm_topk_prob); without renormalisation the softmax must come before the choice.
    if not config.get("norm_topk_prob", False):
        args["moe-router-pre-softmax"] = True
    sparse = _sparse_layers(config)
    if not all(sparse):
        # Megatron's parser takes a Python list without spaces.
        args["moe-layer-freq"] = f"[{','.join(str(int(s)) for s in sparse)}]"
    return args


def engine_fault(config: HfConfig) -> str | None:
    """SGLang 0.5.17 gives every layer of a Qwen3-MoE experts, whatever the configuration says."""
    if all(_sparse_layers(config)):
        return None
    return (
        f"mlp_only_layers={config.get('mlp_only_layers')} and decoder_sparse_step="
        f"{config.get('decoder_sparse_step', 1)} leave layers without experts, but SGLang gives every layer of a "
        "Qwen3-MoE experts: it would generate with another model than is trained"
    )


def _sparse_layers(config: HfConfig) -> list[bool]:
    return [is_sparse(config, i) for i in range(config["num_hidden_layers"])]


def num_experts(config: HfConfig) -> int:
    """Routed experts per layer; transformers 5 writes the number under another key than its models' authors."""
    return int(config["num_experts"] if "num_experts" in config else config["num_local_experts"])


def is_sparse(config: HfConfig, i: int) -> bool:
    """Whether layer i has experts: transformers' own rule."""
    return (
        i not in (config.get("mlp_only_layers") or []) and (i + 1) % config.get("decoder_sparse_step", 1) == 0
    )


def experts(config: HfConfig, i: int, count: int) -> list[Rule]:
    """Norm, router and `count` experts of layer i. Names: SequentialMLP first, then TEGroupedMLP."""
    hidden, ffn = config["hidden_size"], config["moe_intermediate_size"]
    hf = f"model.layers.{i}"
    rules = [
        replicated(
            ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"),
            f"{hf}.post_attention_layernorm.weight",
            (hidden,),
        ),
        replicated("mlp.router.weight", f"{hf}.mlp.gate.weight", (count, hidden)),
    ]
    for e in range(count):
        one = f"{hf}.mlp.experts.{e}"
        rules += [
            gate_up(_names("linear_fc1"), f"{one}.gate_proj.weight", f"{one}.up_proj.weight", ffn, hidden, e),
            row_parallel(_names("linear_fc2"), f"{one}.down_proj.weight", hidden, ffn, e),
        ]
    return rules


def _names(linear: str) -> tuple[str, ...]:
    return (f"mlp.experts.local_experts.{{expert}}.{linear}.weight", f"mlp.experts.{linear}.weight{{expert}}")


def layer(config: HfConfig, i: int) -> Sequence[Rule]:
    """Rules of decoder layer i."""
    sparse = is_sparse(config, i)
    mlp = experts(config, i, num_experts(config)) if sparse else llama.dense_mlp(config, i)
    return qwen3.attention(config, i) + mlp


FAMILY = Family(
    "qwen3_moe",
    ("Qwen3MoeForCausalLM",),
    megatron_args,
    llama.embedding,
    llama.head,
    layer,
    engine_fault,
)
