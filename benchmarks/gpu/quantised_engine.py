"""An engine in FP8 beside a trainer in BF16 on one GPU: do all weights arrive, and how far off is the engine?

    python benchmarks/gpu/quantised_engine.py --out benchmarks/gpu/results [--layers 2] [--steps 6]

Runs the toy task on layers of Qwen3-30B-A3B's width, once with an engine in BF16 and once with one in FP8, colocated:
the weights cross by `ipc`, by the plan and the code of `reshard`, each converted on one of the trainer's ranks. In
every round each of the engine's tensors is compared with the trainer's, converted (`weights.check`). Writes
quantised_engine.json: for both the bytes and seconds of a round, how many tensors were compared, and the KL (k3) of
the engine's policy to the trainer's. Exits with 1 when a run fails, of which a tensor that differs is one reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.one_trainer_one_engine import machine, run, summarise
from benchmarks.gpu.routing_replay import prepare
from verst.sync.formats import Fp8
from verst.sync.hf.convert import convert


def main() -> None:
    """Both runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["SGLANG_ENABLE_JIT_DEEPGEMM"] = "0"  # Triton's kernels: DeepGEMM's compile for minutes
    figures: dict[str, Any] = {"layers": options.layers, **machine()}
    with tempfile.TemporaryDirectory() as name:
        model = prepare(Path(name) / "model", options.layers)
        convert(model, Path(name) / "fp8", Fp8(), device="cuda")
        for format, engine in (("fp8", Path(name) / "fp8"), ("bf16", model)):
            figures[format] = one(options, Path(name) / format, model, engine)
            (options.out / "quantised_engine.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def one(options: argparse.Namespace, runs: Path, model: Path, engine: Path) -> dict[str, Any]:
    """A run's figures."""
    overrides = (
        f"rollout.model_path={engine}",
        "placement.layout=colocated",
        "weights.check=true",
        f"algorithm.steps={options.steps}",
        "algorithm.stages.0.steps=8",
        "trainer.megatron.lr=1e-5",
        *options.overrides,
    )
    run(argparse.Namespace(recipe="tiny-moe", model=model, overrides=overrides), runs / "run")
    found = summarise(runs / "run")
    keys = ("steps", "median_sync_seconds", "bytes_per_sync", "checked_tensors_per_round")
    return {key: found[key] for key in (*keys, "kl_rollout_k3_median", "logprob_max_diff", "routing_wrong")}


if __name__ == "__main__":
    main()
