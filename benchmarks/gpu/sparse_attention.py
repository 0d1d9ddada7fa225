"""Replay of sparse attention's choices against a real engine: DeepSeek-V3.2's layers, narrower, with random weights.

    python benchmarks/gpu/sparse_attention.py --out results/    # one GPU

Runs `verst run` with replay (the learning rate moves nothing) on prompts twice as long as what a token attends
to, trainer and engine on one GPU. Each step a probe compares the engine's policy with the trainer's twice: with the
engine's experts and attended tokens, and with the trainer's own. An answer that is not K positions up to the token's
own ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.one_trainer_one_engine import machine
from benchmarks.gpu.shapes import release
from verst.runtime.data.models import character_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes/tiny-moe.yaml"
NAME = "sparse-attention"
LAYERS = 4
CHOSEN = 2048  # SGLang's kernels take no other number
PROMPT = 4000
RESPONSE = 96
# Kernels that are on the machine or compile there. SGLang's own choice for decoding, FlashAttention-3, is not.
ENGINE = (
    "rollout.sglang.attention-backend=dsa",
    "rollout.sglang.dsa-prefill-backend=flashmla_sparse",
    "rollout.sglang.dsa-decode-backend=flashmla_sparse",
    "rollout.sglang.kv-cache-dtype=bfloat16",
    "rollout.sglang.grammar-backend=none",
    "rollout.sglang.disable-cuda-graph=true",
    "rollout.sglang.mem-fraction-static=0.25",
    "rollout.sglang.max-total-tokens=65536",
    "weights.backend=gloo",
    "placement.affinity=none",
)
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "0,0",  # twice the same: one GPU for the trainer's rank and the engine
    "SGLANG_DSA_PREFILL_DENSE_ATTN_KV_LEN_THRESHOLD": "0",  # short prompts too; else FlashAttention-3 takes them
}
KEPT = (
    "kl_rollout_k3",
    "logprob_max_diff",
    "routing_replayed",
    "routing_wrong",
    "routing_would_differ",
    "selection_replayed",
    "selection_wrong",
    "selection_would_differ",
    "selection_tokens_differ",
    "routing_probe_kl_free",
    "routing_probe_kl_replayed",
    "routing_probe_ratio_free",
    "routing_probe_ratio_replayed",
)


def main() -> None:
    """The run and its figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--limit", type=float, default=420.0, help="seconds")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = options.runs.absolute()
    write_case(runs / "model")
    release()
    subprocess.run(
        command(options, runs),
        env=os.environ | ENVIRONMENT,
        check=True,
        timeout=options.limit,
    )
    shape = {"layers": LAYERS, "chosen": CHOSEN, "prompt": PROMPT, "response": RESPONSE}
    figures = shape | machine() | found(runs / NAME)
    (options.out / "sparse_attention.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def write_case(folder: Path, device: str = "cuda") -> None:
    """Model, tokenizer and prompts. The kernels ask for 64 indexer heads of 128 and a latent of 512 + 64."""
    tokenizer = character_tokenizer()
    config = hf.DeepseekV32Config(
        vocab_size=64,
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=512,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=32,
        num_experts=32,
        num_experts_per_tok=4,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        # Of DeepSeek's own config.json; transformers' classes do without, SGLang's do not.
        moe_layer_freq=1,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        rope_theta=10_000.0,
        index_n_heads=64,
        index_head_dim=128,
        index_topk=CHOSEN,
        max_position_embeddings=8192,
        initializer_range=0.05,  # wider than trained, so that attention is not an average
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    letters, pick = "abcdefghijklmnopqrstuvwxyz0123456789", random.Random(0)
    texts = ("".join(pick.choices(letters, k=PROMPT)) for _ in range(32))
    lines = [json.dumps({"prompt": text, "label": text[-5:]}) for text in texts]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


def command(options: argparse.Namespace, runs: Path) -> list[str]:
    """`verst run` with all settings."""
    model = runs / "model"
    settings = (
        f"name={NAME}",
        f"runs_dir={runs}",
        f"model.path={model}",
        "model.dtype=bfloat16",
        f"data.train.path={model}/train.jsonl",
        "data.eval=null",
        f"data.train.max_prompt_tokens={PROMPT + 100}",
        "algorithm.stages=[{kind: policy}]",
        "algorithm.prompts_per_step=2",
        "algorithm.samples_per_prompt=2",
        f"algorithm.steps={options.steps}",
        "trainer.megatron.lr=0.0",
        f"trainer.max_tokens_per_microbatch={PROMPT + 256}",
        f"rollout.sampling.max_new_tokens={RESPONSE}",
        f"checkpoint.interval={options.steps}",
    )
    verst = [sys.executable, "-m", "verst.launcher.cli", "run", str(RECIPE)]
    return [*verst, *settings, *ENGINE, *options.overrides]


def found(run: Path) -> dict[str, Any]:
    """The mean of each figure over the steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    means = {key: statistics.fmean(line[key] for line in steps) for key in KEPT if key in steps[0]}
    return {"steps": len(steps), "tokens": sum(line["tokens"] for line in steps), **means}


if __name__ == "__main__":
    main()
