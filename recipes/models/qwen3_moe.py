"""Qwen3's mixture-of-experts models: Qwen3's attention, softmax top-k routing of SwiGLU experts, no shared expert."""

from __future__ import annotations

from collections.abc import Sequence

from verst.recipes.models import llama, qwen3
from verst.sync.layout.mapping import ArgumentValue, Family, HfConfig, Rule, gate_up, replicated, row_parallel


def megatron_args(config: HfConfig) -> dict[str, ArgumentValue]:
    """Megatron's arguments. Raises ValueError for a configuration that they cannot express."""
    _require_experts(config)
    args = qwen3.megatron_args(config)
    args |= {
        "num-experts": num_experts(config),
        "moe-router-topk": config["num_experts_per_tok"],
        "moe-ffn-hidden-size": config["moe_intermediate_size"],
        "moe-router-score-function": "softmax",
        # Reinforcement learning optimises the policy only; a recipe can turn balancing on again.
        "moe-router-load-balancing-type": "none",
        "moe-aux-loss-coeff": 0.0,
    }
    # With norm_topk_prob, the softmax over the chosen logits equals the softmax over all logits, renormalised to the
    # chosen ones. Without it, the softmax must come before the choice.
    if not config.get("norm_topk_prob", False):
        args["moe-router-pre-softmax"] = True
    sparse = _sparse_layers(config)
    if not all(sparse):
        # Megatron's parser takes a Python list without spaces.
        args["moe-layer-freq"] = f"[{','.join(str(int(s)) for s in sparse)}]"
    return args


def _require_experts(config: HfConfig) -> None:
    step, topk = config.get("decoder_sparse_step", 1), config["num_experts_per_tok"]
    if step < 1:
        raise ValueError(f"config.json: decoder_sparse_step = {step}: must be at least 1")
    if num_experts(config) < 1:
        raise ValueError(f"config.json: num_experts = {num_experts(config)}: must be at least 1")
    if not 1 <= topk <= num_experts(config):
        raise ValueError(
            f"config.json: num_experts_per_tok = {topk}: must be between 1 and the {num_experts(config)} experts"
        )
    if topk == 1 and config.get("norm_topk_prob", False):
        raise ValueError(
            "config.json: num_experts_per_tok = 1 with norm_topk_prob = true gives the chosen expert the weight 1, "
            "whatever its score; Megatron has no such router"
        )


def engine_fault(config: HfConfig) -> str | None:
    """A fault if some layers have no experts: SGLang 0.5.17 gives experts to every layer of a Qwen3-MoE."""
    if all(_sparse_layers(config)):
        return None
    return (
        f"mlp_only_layers={config.get('mlp_only_layers')} and decoder_sparse_step="
        f"{config.get('decoder_sparse_step', 1)} leave layers without experts, but SGLang gives experts to every layer "
        "of a Qwen3-MoE: it would generate with another model than the one that is trained"
    )


def _sparse_layers(config: HfConfig) -> list[bool]:
    return [is_sparse(config, i) for i in range(config["num_hidden_layers"])]


def num_experts(config: HfConfig) -> int:
    """Number of routed experts per layer. transformers 5 writes it under another key than the models' authors do."""
    return int(config["num_experts"] if "num_experts" in config else config["num_local_experts"])


def is_sparse(config: HfConfig, i: int) -> bool:
    """Whether layer i has experts, by the rule of transformers."""
    return (
        i not in (config.get("mlp_only_layers") or []) and (i + 1) % config.get("decoder_sparse_step", 1) == 0
    )


def experts(config: HfConfig, i: int, count: int) -> list[Rule]:
    """Rules of the norm, the router and `count` experts in layer i.

    Names of experts are those of SequentialMLP first, then of TEGroupedMLP.
    """
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
    model_types=("qwen3_moe",),
    scored_as="Qwen3MoeForSequenceClassification",
)
