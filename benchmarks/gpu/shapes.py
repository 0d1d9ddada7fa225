"""Models of real layer widths, a few layers deep, with random weights: made on the GPU in seconds.

And a tiny one, to try a benchmark without a GPU."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

_COMMON: dict[str, Any] = {
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "head_dim": 128,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": False,
}
_QWEN3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_QWEN3_0_6B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
_QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
_DENSE = {"qwen3-8b": _QWEN3_8B, "qwen3-0.6b": _QWEN3_0_6B}
_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
}
# DeepSeek-V3's latent attention, whole heads of it, in a narrow model.
_LATENT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 768,
    "first_k_dense_replace": 1,
}
SHAPES = ("qwen3-8b", "qwen3-30b-a3b")


def write_model(folder: Path, shape: str, layers: int, device: str = "cuda", **overrides: Any) -> Path:
    """Writes `layers` layers of a shape, of "qwen3-0.6b", "latent" or "tiny", in bf16, in Hugging Face form."""
    import transformers as hf

    if shape in _DENSE:
        config = hf.Qwen3Config(**_COMMON | _DENSE[shape] | {"num_hidden_layers": layers} | overrides)
    elif shape == "latent":
        common = {key: value for key, value in _COMMON.items() if key != "head_dim"}
        config = hf.DeepseekV3Config(**common | _LATENT | {"num_hidden_layers": layers} | overrides)
    else:
        widths = _TINY if shape == "tiny" else {}
        moe = _COMMON | _QWEN3_30B_A3B | widths | {"num_hidden_layers": layers} | overrides
        config = hf.Qwen3MoeConfig(**moe)
    torch.manual_seed(0)
    with torch.device(device):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    release()
    return folder


def release() -> None:
    """Gives the memory back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
