"""How long a plan takes, how much memory, and what the links then need: large models, on paper.

    python -P benchmarks/weight_plans.py [--only kimi-k2]

The plans are the real ones (`verst.sync.layout.plan`), from tables without memory behind them: trainer and engines in
the layouts that others publish figures for. The time of a transfer follows from the plan's bytes by a model of
four numbers: the rate of a link, what a bucket costs, what a round costs, and how many engines a sender serves at
once. Its rate and costs are fitted to what two H200 gave (`gpu/results/weight_sync_2xh200.json`) and the fit is
shown; for the large ones the rate is that of a 400 Gb/s NIC a GPU times the share of the raw rate that was reached.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from verst.recipes.models import deepseek_v3
from verst.sync.layout.blocks import Blocks, held_blocks
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.plan import Plan, make_plan
from verst.sync.layout.schedule import schedule

RESULTS = Path(__file__).parent / "results/weight_plans.json"
MEASURED = Path(__file__).parent / "gpu/results/weight_sync_2xh200.json"
NIC_GB_PER_S = 50.0  # 400 Gb/s, one for each GPU
BUCKET_BYTES = 1 << 29

_MLA = {
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": False,
    "n_shared_experts": 1,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
}


@dataclass(frozen=True)
class Case:
    """A model, the trainer's and an engine's layout, how many engines, and what others say."""

    config: dict[str, Any]
    trainer: ParallelSizes
    engine: ParallelSizes
    engines: int
    others_s: dict[str, float]


CASES = {
    "kimi-k2": Case(
        _MLA
        | {
            "vocab_size": 163_840,
            "hidden_size": 7168,
            "intermediate_size": 18_432,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 61,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
        },
        ParallelSizes(world=256, tp=8, pp=8, cp=4, ep=32, etp=1, last_stage_layers=5),
        ParallelSizes(world=32, tp=32, ep=32, etp=1),
        8,
        {"Miles, NCCL": 53.3, "Miles, RDMA": 7.2, "Perplexity, RDMA, 256 to 128 GPUs": 1.3},
    ),
    # GLM-5's own attention has an indexer that this family lacks: the sizes are its, the small tensors are not.
    "glm-5": Case(
        _MLA
        | {
            "vocab_size": 154_880,
            "hidden_size": 6144,
            "intermediate_size": 12_288,
            "moe_intermediate_size": 2048,
            "num_hidden_layers": 78,
            "num_attention_heads": 64,
            "num_key_value_heads": 64,
            "n_routed_experts": 256,
            "first_k_dense_replace": 3,
        },
        ParallelSizes(world=128, tp=4, pp=8, cp=2, ep=16, etp=1, last_stage_layers=8),
        ParallelSizes(world=64, tp=64, ep=64, etp=1),
        2,
        {"Miles, NCCL": 58.3, "Miles, RDMA": 8.5},
    ),
    # DeepSeek-V4-Pro's attention is another: a model of DeepSeek-V3's kind with as many parameters stands for it.
    "1.6t-like-deepseek-v4-pro": Case(
        _MLA
        | {
            "vocab_size": 129_280,
            "hidden_size": 7168,
            "intermediate_size": 18_432,
            "moe_intermediate_size": 3072,
            "num_hidden_layers": 61,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
        },
        ParallelSizes(world=256, tp=8, pp=8, ep=32, etp=1, first_stage_layers=7, last_stage_layers=6),
        ParallelSizes(world=32, tp=32, ep=32, etp=1),
        8,
        {},
    ),
}


def tables(config: dict[str, Any], sizes: ParallelSizes) -> list[Blocks]:
    """Every rank's table in bf16."""
    found = []
    for rank in range(sizes.world):
        held = Layout(deepseek_v3.FAMILY, config, sizes, rank).parameters
        meta = [(p, torch.empty(p.shape, dtype=torch.bfloat16, device="meta")) for p in held]
        found.append(held_blocks(meta)[0])
    return found


@dataclass(frozen=True)
class Links:
    """What a transfer costs beside bytes over links."""

    rate: float  # bytes a second of each rank's link, each way
    bucket_s: float
    round_s: float

    def seconds(self, sent: np.ndarray, received: np.ndarray, buckets: int) -> float:
        """Of a transfer whose ranks send and receive so many bytes."""
        return float(max(sent.max(), received.max())) / self.rate + buckets * self.bucket_s + self.round_s


def fit() -> tuple[Links, list[dict[str, float]]]:
    """Costs from the measured points with the least squares; and how far each point is from the fit."""
    figures = json.loads(MEASURED.read_text())
    rate = figures["raw"]["send_recv_512_mib_gb_per_s"] * 1e9
    points = [figures[name] for name in ("reshard", "reshard_half_bucket", "reshard_double_bucket")]
    rest = [point["transfer_s"] - figures["bytes"] / rate for point in points]
    matrix = np.array([[point["buckets"], 1.0] for point in points])
    (bucket_s, round_s), *_ = np.linalg.lstsq(matrix, np.array(rest), rcond=None)
    links = Links(rate, float(bucket_s), float(round_s))
    one = np.array([figures["bytes"]])
    return links, [
        {
            "buckets": point["buckets"],
            "measured_s": point["transfer_s"],
            "simulated_s": links.seconds(one, one, point["buckets"]),
        }
        for point in points
    ]


def simulate(case: Case, plan: Plan, links: Links) -> dict[str, Any]:
    """All engines, each sender serving them all: how long, and what bounds it."""
    segments = plan.segments
    sent = np.bincount(segments["sender"], segments["nbytes"], minlength=plan.senders) * case.engines
    received = np.bincount(segments["first"] - plan.senders, segments["nbytes"], minlength=plan.receivers)
    figures = json.loads(MEASURED.read_text())
    reached = figures["reshard"]["gb_per_s"] / figures["raw"]["send_recv_512_mib_gb_per_s"]
    slow = Links(NIC_GB_PER_S * 1e9 * reached, links.bucket_s, links.round_s)
    buckets = plan.buckets * case.engines  # each sender packs each engine's
    return {
        "seconds": slow.seconds(sent, received, buckets),
        "bound_by": "senders" if sent.max() >= received.max() else "receivers",
        "gb_sent_by_a_rank": {"most": sent.max() / 1e9, "mean": sent.mean() / 1e9},
        "gb_received_by_a_rank": {"most": received.max() / 1e9, "mean": received.mean() / 1e9},
        "others_s": case.others_s,
    }


def measure(case: Case, links: Links) -> dict[str, Any]:
    """Tables, plan, one rank's schedule: seconds, memory, and the simulated transfer."""
    began = time.monotonic()
    trainer, engine = tables(case.config, case.trainer), tables(case.config, case.engine)
    tabled = time.monotonic()
    plan = make_plan(trainer, engine, BUCKET_BYTES)
    planned = time.monotonic()
    schedule(plan, 0)
    return {
        "gb": plan.nbytes / 1e9,
        "blocks": sum(len(t.rows) for t in trainer + engine),
        "segments": len(plan.segments),
        "buckets": plan.buckets,
        "tables_of_all_ranks_s": tabled - began,
        "plan_s": planned - tabled,
        "schedule_of_a_rank_s": time.monotonic() - planned,
        "table_of_a_rank_mib": max(t.rows.nbytes for t in trainer) / 2**20,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **simulate(case, plan, links),
    }


def main() -> None:
    """Writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=sorted(CASES))
    options = parser.parse_args()
    links, points = fit()
    figures: dict[str, Any] = {
        "figure": "plans of large models: time and memory on one core, and transfers on paper",
        "fit": {"bucket_us": links.bucket_s * 1e6, "round_ms": links.round_s * 1e3, "points": points},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "date": datetime.date.today().isoformat(),
    }
    for name in [options.only] if options.only else CASES:
        figures[name] = measure(CASES[name], links)
        print(name, json.dumps(figures[name]), flush=True)
    if not options.only:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures["fit"]))


if __name__ == "__main__":
    main()
