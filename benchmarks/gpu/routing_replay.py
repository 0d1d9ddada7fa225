"""What routing replay changes between an engine and a trainer in bf16, at Qwen3-30B-A3B's width.

    python benchmarks/gpu/routing_replay.py --out results/ [--layers 8] [--steps 12]

On a machine with two GPUs: whole runs through `verst run`, with replay and without, on the same random weights (the
learning rate moves nothing), the same prompts and seeds. Compares the KL (k3) of the engine's policy to the trainer's,
the largest difference of a log-probability, the share of routings that would have been others, seconds of the
training pass and generated tokens per second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.one_trainer_one_engine import ENGINE, machine
from benchmarks.gpu.shapes import write_model
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.tasks import reversal

RECIPE = Path(__file__).parents[2] / "recipes/tiny-moe.yaml"


def main() -> None:
    """Both runs and the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    model = prepare(options.runs.absolute() / "model", options.layers)
    figures: dict[str, Any] = {"layers": options.layers, **machine()}
    for replay in (True, False):
        figures["replay" if replay else "free"] = run(options, model, replay)
        print(json.dumps(figures), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "routing_replay.json").write_text(json.dumps(figures, indent=1) + "\n")


def prepare(folder: Path, layers: int) -> Path:
    """A model of the shape with the toy task's tokenizer and prompts."""
    tokenizer = character_tokenizer()
    write_model(
        folder,
        "qwen3-30b-a3b",
        layers,
        vocab_size=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(folder)
    return reversal(folder)


def run(options: argparse.Namespace, model: Path, replay: bool) -> dict[str, Any]:
    """One run's figures, over its steps but the first two."""
    name = "replay" if replay else "free"
    settings = (
        f"name={name}",
        f"runs_dir={options.runs.absolute()}",
        f"model.path={model}",
        "model.dtype=bfloat16",
        f"data.train.path={model}/train.jsonl",
        f"data.eval.path={model}/eval.jsonl",
        "algorithm.warm_start=null",
        f"algorithm.routing_replay={str(replay).lower()}",
        f"algorithm.steps={options.steps}",
        "trainer.megatron.lr=0.0",
        "rollout.sampling.max_new_tokens=256",
        f"checkpoint.interval={options.steps}",
    )
    began = time.monotonic()
    command = [sys.executable, "-m", "verst.launcher.cli", "run", str(RECIPE)]
    subprocess.run([*command, *settings, *ENGINE, *options.overrides], check=True, timeout=500)
    lines = [json.loads(line) for line in (options.runs / name / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"][2:]
    found = {
        key: statistics.fmean(line[key] for line in steps)
        for key in ("kl_rollout_k3", "logprob_max_diff", "routing_would_differ", "routing_wrong")
        if key in steps[0]
    }
    return found | {
        "wall_seconds": time.monotonic() - began,
        "logprob_max_diff_largest": max(line["logprob_max_diff"] for line in steps),
        "trained_tokens": sum(line["tokens"] for line in steps),
        "median_generated_tokens_per_s": statistics.median(line["rollout_tokens_per_s"] for line in steps),
        "median_seconds": {
            phase: statistics.median(line["seconds"].get(phase, 0.0) for line in steps)
            for phase in steps[0]["seconds"]
        },
    }


if __name__ == "__main__":
    main()
