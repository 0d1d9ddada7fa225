"""Tiny models of each family in Hugging Face form, random but fixed, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_COMMON: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
# A dense layer first, groups, a shared expert, compressed queries; without head_dim, which it derives.
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "tie_word_embeddings": False,
}
# Transformers makes `num_experts` experts, of which the router knows `n_routed_experts`.
_SPARSE = {"index_topk": 3, "index_n_heads": 8, "index_head_dim": 8, "num_experts": 8}
# Every second layer shares a choice: chunks of two layers begin with one that chooses.
_GLM = {
    "num_hidden_layers": 8,
    "n_group": 1,
    "topk_group": 1,
    "index_topk_freq": 2,
    "index_skip_topk_offset": 1,
    "rms_norm_eps": 1e-6,  # as transformers' norms of compressed states have it in any case
}


def hf_config(family: str, **overrides: Any) -> Any:
    """A transformers configuration of the family, with tied embeddings for Llama alone."""
    from transformers import (
        DeepseekV3Config,
        DeepseekV32Config,
        GlmMoeDsaConfig,
        LlamaConfig,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    if family == "llama":
        return LlamaConfig(**_COMMON | {"tie_word_embeddings": True} | overrides)
    if family == "qwen3":
        return Qwen3Config(**_COMMON | {"tie_word_embeddings": False} | overrides)
    if family == "qwen3_moe":
        moe = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
        }
        moe["tie_word_embeddings"] = False
        return Qwen3MoeConfig(**_COMMON | moe | overrides)
    common = {key: value for key, value in _COMMON.items() if key != "head_dim"}
    if family == "deepseek_v3":
        return DeepseekV3Config(**common | _DEEPSEEK | overrides)
    if family == "deepseek_v32":
        return DeepseekV32Config(**common | _DEEPSEEK | _SPARSE | overrides)
    if family == "glm_moe_dsa":
        return GlmMoeDsaConfig(**common | _DEEPSEEK | _SPARSE | _GLM | overrides)
    raise ValueError(family)


def write_model(
    folder: Path, family: str, *, seed: int = 0, max_shard_size: str = "5GB", **overrides: Any
) -> Path:
    """Saves a random model, norms randomised too, as transformers saves one."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(hf_config(family, **overrides), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.mul_(3)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder
