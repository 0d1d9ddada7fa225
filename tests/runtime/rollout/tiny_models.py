"""Tiny random fp32 models of each family, saved as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from verst.runtime.data.models import character_tokenizer

_DENSE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # spreads the logits, so that sampling and routing have something to choose
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MOE = {
    "moe_intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "head_dim": 16,
    "norm_topk_prob": True,
}
# What SGLang wants to be told of DeepSeek-V3: a rope scaling, and what transformers' configuration leaves out.
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "ep_size": 1,
    "rope_parameters": {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}


def build(family: str, seed: int = 0) -> Any:
    """A model of `family` "llama" (tied embeddings), "qwen3", "qwen3_moe" (every layer routes) or "deepseek_v3"
    (all but the first do), or "deepseek_v3_odd", whose vocabulary SGLang has to pad."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llama":
            return LlamaForCausalLM(LlamaConfig(**_DENSE, tie_word_embeddings=True)).float().eval()
        if family == "qwen3":
            return (
                Qwen3ForCausalLM(Qwen3Config(**_DENSE, head_dim=16, tie_word_embeddings=False)).float().eval()
            )
        if family.startswith("deepseek_v3"):
            odd = {"vocab_size": 67} if family == "deepseek_v3_odd" else {}
            model = DeepseekV3ForCausalLM(DeepseekV3Config(**(_DENSE | _DEEPSEEK | odd))).float().eval()
            for layer in model.model.layers[1:]:
                layer.mlp.gate.e_score_correction_bias.normal_(0, 0.1)
            return model
        config = Qwen3MoeConfig(**(_DENSE | _MOE), tie_word_embeddings=False)
        return Qwen3MoeForCausalLM(config).float().eval()


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves `build(family, seed)` with a tokenizer, and with the advice to sample greedily, which no one may take."""
    build(family, seed).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    advice = {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.1,
        "eos_token_id": _DENSE["eos_token_id"],
    }
    (folder / "generation_config.json").write_text(json.dumps(advice))
    return folder
