"""How fast is a training step of real layer widths on one GPU, and what does routing replay add to it?

    python benchmarks/gpu/trainer_speed.py --out results/ [--layers 8] [--tokens 8192]

A few layers of Qwen3-8B's and of Qwen3-30B-A3B's width (random weights, bf16, fp32 masters), with Megatron's local
layers and with Transformer Engine's. A step is two sequences, one a micro-batch. With replay each token gets the
experts that the model itself chose without, so the work of the experts is the same and what is left is replay's own
cost. Warm steps come first; figures are medians.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.shapes import SHAPES, release, write_model
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef, StepPlan
from verst.runtime.trainer.config import TrainerConfig
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.routing import cut_all
from verst.runtime.trainer.trainer import Trainer
from verst.sync.replay.routing import pack

SEQUENCES, PROMPT = 2, 512
WARM, TIMED = 2, 7
VOCABULARY = 100_000  # of the random tokens


def main() -> None:
    """Measures every shape with every kind of layers and writes one JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of one sequence")
    parser.add_argument("--implementations", nargs="+", default=["local", "transformer_engine"])
    options = parser.parse_args()
    found: dict[str, Any] = {"layers": options.layers, "tokens_per_sequence": options.tokens, **machine()}
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            model = write_model(Path(folder) / shape, shape, options.layers)
            for layers in options.implementations:
                free, routing = measure(model, layers, options.tokens)
                show(found, f"{shape} {layers}", free)
                if routing[0] is not None and layers == "transformer_engine":
                    replayed, _ = measure(model, layers, options.tokens, routing)
                    replayed["step_ratio"] = (
                        replayed["median_seconds"]["step"] / free["median_seconds"]["step"]
                    )
                    show(found, f"{shape} {layers} replayed", replayed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "trainer_speed.json").write_text(json.dumps(found, indent=1) + "\n")


def show(found: dict[str, Any], name: str, figures: dict[str, Any]) -> None:
    """Keeps the figures of one measurement and prints them."""
    found[name] = figures
    print(name, json.dumps(figures), flush=True)


def measure(
    model: Path, layers: str, tokens: int, routing: list[np.ndarray | None] | None = None
) -> tuple[dict[str, Any], list[np.ndarray | None]]:
    """Seconds of a step, tokens per second and memory; and the routing that the model chose by itself.

    With `routing` that is replayed instead.
    """
    trainer = build(model, layers, replay=routing is not None)
    samples = make_samples(tokens)
    if routing is not None:
        samples = [msgspec.structs.replace(s, routing=r) for s, r in zip(samples, routing, strict=True)]
    try:
        own = [] if routing is not None else [own_routing(trainer, s) for s in samples]
        torch.cuda.reset_peak_memory_stats()
        steps = [timed_step(trainer, samples, step) for step in range(WARM + TIMED)]
        times = [seconds for seconds, _ in steps[WARM:]]
        found: dict[str, Any] = {
            "parameters": trainer.model.parameter_count,
            "median_seconds": {key: statistics.median(one[key] for one in times) for key in times[0]},
            "step_seconds_range": [min(t["step"] for t in times), max(t["step"] for t in times)],
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
        found["tokens_per_s"] = SEQUENCES * tokens / found["median_seconds"]["step"]
        if routing is not None:
            for key in ("routing_replayed", "routing_wrong", "routing_would_differ"):
                found[key] = [metrics[key] for _, metrics in steps][-1]
    finally:
        trainer.close()
        del trainer
        release()
    return found, own


def build(model: Path, layers: str, replay: bool, device: str = "cuda") -> Trainer:
    """A trainer on the whole GPU; its learning rate moves nothing, so that every step is the same work."""
    store = dist.HashStore()
    backend = "nccl" if device == "cuda" else "gloo"
    return Trainer(
        ModelConfig(path=str(model), dtype="bfloat16"),
        # The samples are no engine's, so their log-probabilities agree with nothing.
        TrainerConfig(megatron={"transformer-impl": layers, "lr": 0.0, "min-lr": 0.0}, max_logprob_diff=1e9),
        AlgorithmConfig(
            steps=1000,
            prompts_per_step=1,
            samples_per_prompt=SEQUENCES,
            routing_replay=replay,
            routing_probe_interval=0,
        ),
        Parallel(0, 1, store, backend=backend, timeout_s=300),
        train_steps=1000,
    )


def make_samples(tokens: int, vocabulary: int = VOCABULARY) -> list[Sample]:
    """Random tokens, scored as if the present policy had written them."""
    random = np.random.default_rng(0)
    prompt = min(PROMPT, tokens // 2)
    response = tokens - prompt
    return [
        Sample(
            group=0,
            index=index,
            prompt_ids=random.integers(0, vocabulary, prompt, dtype=np.int32),
            response_ids=random.integers(0, vocabulary, response, dtype=np.int32),
            logprobs=np.full(response, -12.0, np.float32),
            loss_mask=np.ones(response, np.uint8),
            weight_versions=np.zeros(response, np.int32),
            reward=float(index),
            finish="stop",
            signals={"temperature": np.ones(response, np.float32)},
        )
        for index in range(SEQUENCES)
    ]


def own_routing(trainer: Trainer, sample: Sample) -> np.ndarray | None:
    """The experts that the model chooses for the sample by itself, uint8 [tokens - 1, layers, entry]."""
    topk = trainer.model.transformer_config.moe_router_topk
    found: list[torch.Tensor] = []

    def keep(router: Any, inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        found.append(output[1].flatten(0, -2).float().topk(topk, dim=1).indices)

    routers = [m for c in trainer.model.chunks for m in c.modules() if type(m).__name__ == "TopKRouter"]
    hooks = [router.register_forward_hook(keep) for router in routers]
    trainer.logprobs([sample])
    for hook in hooks:
        hook.remove()
    experts = trainer.model.transformer_config.num_moe_experts
    return pack(torch.stack(found, 1)[:-1].cpu().numpy(), experts) if found else None


def timed_step(
    trainer: Trainer, samples: list[Sample], step: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the whole step and of its phases, and the step's metrics."""
    trained = sum(len(s.response_ids) for s in samples)
    cuts = [
        MicroBatch([SampleRef(0, s.index, 0, s.length, 1.0 - 2 * s.index, [1 / trained])]) for s in samples
    ]
    plan = StepPlan(step=step, terms=["policy"], microbatches=[cuts])
    by_name = {(s.group, s.index): s for s in samples}
    on_gpu = trainer.parallel.device.type == "cuda"
    routing = None
    if trainer.replay is not None:
        parts = cut_all(trainer.replay.share, cuts, by_name, trainer.replay.entry)
        routing = [part.pin_memory() if on_gpu else part for part in parts]
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    report = trainer.train(plan, by_name, routing)
    if on_gpu:
        torch.cuda.synchronize()
    return {"step": time.perf_counter() - began, **report.seconds}, report.metrics


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    names = ("torch", "megatron-core", "transformer-engine", "sglang", "verst")
    here = {one.metadata["Name"].lower() for one in importlib.metadata.distributions()}
    return {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {name: importlib.metadata.version(name) for name in names if name in here},
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
