"""How many bytes routing replay moves: per token for known models, per trainer rank against int32 of all layers on
every rank, and what entropy coding would save.

    python benchmarks/routing_bytes.py --out benchmarks/results/routing_bytes.json [--model FOLDER --data JSONL]

Pure arithmetic by the code that trainers use (`sync/replay/routing.py`, `runtime/trainer/share/routing.py`),
but for entropy coding, which is measured on what the routers of a small model choose.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from verst.runtime.trainer.share.routing import Share
from verst.sync.layout.layout import ParallelSizes
from verst.sync.replay.routing import RoutingShape, pack, routing_shape

# What their config.json say, of routing.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-30B-A3B": {"num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8},
    "Qwen3-235B-A22B": {"num_hidden_layers": 94, "num_experts": 128, "num_experts_per_tok": 8},
    "DeepSeek-V3": {
        "num_hidden_layers": 61,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
    },
    "Kimi-K2": {
        "num_hidden_layers": 61,
        "n_routed_experts": 384,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
    },
    "GLM-5": {
        "num_hidden_layers": 78,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
    },
}
PP, CP, TP = 4, 2, 4
# Layers of the first and the last stage where they do not divide evenly.
ENDS = {94: (23, 23), 61: (15, 16), 78: (19, 19)}
LENGTHS = (700, 4100, 9000, 15900)  # of samples in one micro-batch


def main() -> None:
    """Computes everything and writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="a Qwen3-MoE folder, such as a run's export of tiny-moe")
    parser.add_argument("--data", type=Path, help="JSONL of demonstrations for its routers")
    parser.add_argument(
        "--dense", type=Path, help="a dense model's folder, to put routers on real text's states"
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "models": {name: model_bytes(config) for name, config in MODELS.items()},
        "layout": {"pp": PP, "cp": CP, "tp": TP, "sequence_parallel": True, "lengths": LENGTHS},
        "date": datetime.date.today().isoformat(),
    }
    if options.model:
        figures["entropy_coding_tiny_moe"] = entropy_coding(*chosen_experts(options.model, options.data))
    if options.dense:
        figures["entropy_coding_text"] = entropy_coding(*chosen_from_text(options.dense))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def model_bytes(config: dict[str, Any]) -> dict[str, Any]:
    """Bytes of one token, and of one rank's share of a micro-batch."""
    shape = routing_shape(config)
    assert shape is not None
    int32 = shape.layers * shape.top_k * 4
    sets = math.log2(math.comb(shape.experts, shape.top_k)) / 8  # were all sets of experts equally likely
    shares = rank_shares(shape)
    largest = max(share_bytes(share, shape) for share in shares)
    everything = int32 * sum(length - 1 for length in LENGTHS)
    return {
        "moe_layers": len(shape.moe_layers),
        "bits_per_expert": shape.bits,
        "bytes_per_token": shape.token_bytes,
        "bytes_per_token_int32_all_layers": int32,
        "bytes_per_token_if_sets_were_enumerated": len(shape.moe_layers) * sets,
        "rank_bytes_largest": largest,
        "rank_bytes_sum": sum(share_bytes(share, shape) for share in shares),
        "int32_on_every_rank": everything,
        "times_fewer_on_the_rank_with_most": everything / largest,
    }


def rank_shares(shape: RoutingShape) -> list[Share]:
    """Those of all ranks of one data-parallel replica."""
    first, last = ENDS.get(shape.layers, (None, None))
    sizes = ParallelSizes(
        world=PP * CP * TP, pp=PP, cp=CP, tp=TP, first_stage_layers=first, last_stage_layers=last
    )
    places = {layer: place for place, layer in enumerate(shape.moe_layers)}
    shares = []
    for chunks in sizes.stage_layers(shape.layers):
        layers = tuple(places[i] for chunk in chunks for i in chunk if i in places)
        shares += [Share(layers, 2 * CP * TP, cp, CP, tp, TP) for cp in range(CP) for tp in range(TP)]
    return shares


def share_bytes(share: Share, shape: RoutingShape) -> int:
    """Of one micro-batch of LENGTHS."""
    tokens = sum(len(places) for places in share.places(LENGTHS))
    return tokens * len(share.layers) * shape.entry_bytes


def entropy_coding(chosen: np.ndarray, experts: int) -> dict[str, Any]:
    """Bytes per token of routing [tokens, layers, K] as entries, with as few bits as the experts need, and after
    zstd."""
    import zstandard

    entries = pack(np.sort(chosen, -1), experts)
    bits = math.ceil(math.log2(experts))
    layers, topk = chosen.shape[1:]
    packed = bits_only(np.sort(chosen, -1), bits)
    by_layer = np.ascontiguousarray(entries.transpose(1, 0, 2))  # a layer's tokens side by side
    sizes = {
        f"zstd_{level}_{order}": len(zstandard.ZstdCompressor(level=level).compress(array.tobytes()))
        for level in (3, 19)
        for order, array in (("tokens_first", entries), ("layers_first", by_layer), ("packed_bits", packed))
    }
    counts = np.stack([np.bincount(chosen[:, i].ravel(), minlength=experts) for i in range(layers)])
    share = counts / counts.sum(1, keepdims=True)
    return {
        "tokens": len(chosen),
        "experts": experts,
        "top_k": topk,
        "layers": layers,
        "bytes_per_token": entries.nbytes / len(chosen),
        "bytes_per_token_fewest_bits": layers * topk * bits / 8,
        "bytes_per_token_if_sets_were_enumerated": layers * math.log2(math.comb(experts, topk)) / 8,
        "expert_entropy_bits": float(-(share * np.log2(np.maximum(share, 1e-12))).sum(1).mean()),
        **{name: size / len(chosen) for name, size in sizes.items()},
    }


def bits_only(indices: np.ndarray, bits: int) -> np.ndarray:
    """All indices one after another at `bits` each."""
    ones = ((indices.reshape(-1, 1) >> np.arange(bits)) & 1).astype(np.uint8)
    return np.packbits(ones.ravel())


def chosen_experts(folder: Path, data: Path) -> tuple[np.ndarray, int]:
    """What transformers' routers choose for the task's demonstrations: int64 [tokens, layers, K], and how many there
    are to choose from."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.set_num_threads(1)
    lines = data.read_text().splitlines()[:300]
    found = []
    with torch.no_grad():
        for line in map(json.loads, lines):
            ids = torch.tensor([tokenizer.encode(line["prompt"] + line["response"])])
            logits = model(ids, output_router_logits=True).router_logits
            found.append(
                torch.stack([one.topk(model.config.num_experts_per_tok).indices for one in logits], 1)
            )
    return torch.cat(found).numpy(), int(model.config.num_experts)


def chosen_from_text(folder: Path, experts: int = 128, topk: int = 8) -> tuple[np.ndarray, int]:
    """What random routers would choose on the hidden states that a dense model makes of this repository's
    documents: no trained router, but tokens and layers that resemble one another as those of real text do."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "".join(path.read_text() for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md")))
    ids = torch.tensor(tokenizer.encode(text)[:8192]).view(-1, 512)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gates = torch.randn(model.config.num_hidden_layers, experts, model.config.hidden_size)
    with torch.no_grad():
        states = (
            torch.stack([model(row[None], output_hidden_states=True).hidden_states[:-1] for row in ids])
            if False
            else [torch.cat(model(row[None], output_hidden_states=True).hidden_states[:-1]) for row in ids]
        )
    layers_of_tokens = torch.cat(states, 1)  # [layers, tokens, hidden]
    normed = torch.nn.functional.rms_norm(layers_of_tokens, layers_of_tokens.shape[-1:])
    chosen = torch.einsum("lth,leh->tle", normed, gates).topk(topk).indices
    return chosen.numpy(), experts


if __name__ == "__main__":
    main()
