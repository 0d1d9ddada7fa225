"""Tiny random fp32 models of each family, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
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


def build(family: str, seed: int = 0) -> Any:
    """A model of `family` "llama" (tied embeddings), "qwen3" or "qwen3_moe" (every layer routes)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "llama":
            return LlamaForCausalLM(LlamaConfig(**_DENSE, tie_word_embeddings=True)).float().eval()
        if family == "qwen3":
            return (
                Qwen3ForCausalLM(Qwen3Config(**_DENSE, head_dim=16, tie_word_embeddings=False)).float().eval()
            )
        config = Qwen3MoeConfig(**(_DENSE | _MOE), tie_word_embeddings=False)
        return Qwen3MoeForCausalLM(config).float().eval()


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Saves `build(family, seed)` with a tokenizer."""
    build(family, seed).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder
