"""What routing replay changes and what it costs, in bf16, at Qwen3-30B-A3B's width.

    python benchmarks/gpu/routing_replay.py --out results/ step [--implementation local]    # one GPU, minutes
    python benchmarks/gpu/routing_replay.py --out results/ engine                           # one GPU, minutes
    python benchmarks/gpu/routing_replay.py --out results/ runs                             # two GPUs

`step`: training steps with replay and without, in turns in one process. `engine`: requests to an engine that takes
experts down and to one that does not, in turns. Both write figures after each round; `--device cpu --shape tiny` tries
them without a GPU. `runs`: whole runs through `verst run`, with replay and without, on the same random weights
(the learning rate moves nothing), the same prompts and seeds: the KL (k3) of the engine's policy to the trainer's, the
largest difference of a log-probability, the share of routings that would have been others, seconds and tokens per
second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.one_trainer_one_engine import ENGINE, machine
from benchmarks.gpu.shapes import write_model
from verst.runtime.data.models import character_tokenizer
from verst.runtime.data.tasks import reversal

RECIPE = Path(__file__).parents[2] / "recipes/tiny-moe.yaml"


def main() -> None:
    """One of the three measurements."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    kinds = parser.add_subparsers(dest="kind", required=True)
    step, engine, runs = (kinds.add_parser(name) for name in ("step", "engine", "runs"))
    for one in (step, engine):
        one.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
        one.add_argument("--shape", choices=["qwen3-30b-a3b", "tiny"], default="qwen3-30b-a3b")
        one.add_argument("--rounds", type=int, default=60)
        one.add_argument("--seconds", type=float, default=100.0, help="rounds end after so many")
    step.add_argument("--tokens", type=int, default=8192, help="of one sequence")
    step.add_argument(
        "--implementation", choices=["local", "transformer_engine"], default="transformer_engine"
    )
    engine.add_argument("--concurrency", type=int, default=64)
    engine.add_argument("--response", type=int, default=256, help="tokens of each request")
    runs.add_argument("--runs", type=Path, default=Path("runs"))
    runs.add_argument("--steps", type=int, default=12)
    runs.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = "routing_replay" if options.kind == "runs" else f"routing_replay_{options.kind}"

    def note(figures: dict[str, Any]) -> None:
        (options.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")

    if options.kind == "step":
        from benchmarks.gpu import routing_replay_step

        routing_replay_step.measure(options, note)
    elif options.kind == "engine":
        from benchmarks.gpu import routing_replay_engine

        asyncio.run(routing_replay_engine.measure(options, note))
    else:
        whole_runs(options, note)
    print((options.out / f"{name}.json").read_text())


def whole_runs(options: argparse.Namespace, note: Callable[[dict[str, Any]], None]) -> None:
    """Both runs and the comparison."""
    model = prepare(options.runs.absolute() / "model", options.layers)
    figures: dict[str, Any] = {"layers": options.layers, **machine()}
    for replay in (True, False):
        figures["replay" if replay else "free"] = run(options, model, replay)
        note(figures)


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
        "algorithm.stages=[{kind: policy}]",
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
