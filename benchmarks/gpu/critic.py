"""What does the critic of PPO add to a training step on one GPU, in time and in memory?

    python benchmarks/gpu/critic.py --out results/ [--samples 64] [--budget 16384]

Qwen3-0.6B whole and a few layers of the widths of Qwen3-8B and Qwen3-30B-A3B, with random weights in bf16 and fp32
masters, with Megatron's local layers and with Transformer Engine's, on samples of chat-like lengths
(`benchmarks/padding.py`). The same samples are trained with GRPO and with PPO, whose critic has the policy's shape and
layers. A critic adds a forward pass for the values before the step, and a training step of its own that has no logits.

First it checks the critic, and ends if a check fails: with a value head of zero the loss is half the mean squared
reward; the advantages and targets of a step are those of a plain float64 recursion on the values that the critic gives
its samples one by one; and the loss falls on samples that it sees again. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.packing import Held, packed_step, sample
from benchmarks.gpu.shapes import release, write_model
from benchmarks.gpu.trainer_speed import machine, show
from benchmarks.padding import lengths_of
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.critic import CriticConfig
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, StepPlan
from verst.runtime.trainer.config import TrainerConfig
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.step import response_values
from verst.runtime.trainer.trainer import Trainer

SHAPES = {"qwen3-0.6b": 28, "qwen3-8b": 4, "qwen3-30b-a3b": 2}  # layers of each
VOCABULARY = 100_000  # of the random tokens
WARM, TIMED = 2, 7
GAMMA, LAM = 0.999, 0.95
# Of means and deviations over the step: what bf16 rounds between a packed row and a row of one sample.
CLOSE = 2e-3


def main() -> None:
    """Checks and measures every shape with every kind of layers, and writes one JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--budget", type=int, default=16_384, help="tokens of a micro-batch")
    parser.add_argument("--implementations", nargs="+", default=["local", "transformer_engine"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument(
        "--shorter", type=int, default=1, help="divide all lengths, to try this without a GPU"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    lengths = [max(8, n // options.shorter) for n in lengths_of("chat", options.samples)]
    found: dict[str, Any] = {"samples": options.samples, "budget": options.budget, **machine()}
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            model = write_model(Path(folder) / shape, shape, SHAPES.get(shape, 2), device)
            for layers in options.implementations:
                show(found, f"{shape} {layers}", both(model, layers, lengths, options.budget, device))
                (options.out / "critic.json").write_text(json.dumps(found, indent=1) + "\n")


def both(model: Path, layers: str, lengths: Sequence[int], budget: int, device: str) -> dict[str, Any]:
    """The figures of a step without the critic and with it."""
    figures: dict[str, Any] = {"tokens": sum(lengths)}
    for name, critic in (("grpo", None), ("ppo", CriticConfig(lr=1e-4, gamma=GAMMA, lam=LAM))):
        trainer = build(model, layers, critic, budget, device)
        vocabulary = min(VOCABULARY, trainer.model.args.vocab_size)
        samples = [sample(i, n, vocabulary) for i, n in enumerate(lengths)]
        plan, held = packed_step(samples, budget)
        try:
            if critic is not None:
                plan = with_values(plan)
                figures["checked"] = check(trainer, plan, held)
            figures[name] = measure(trainer, plan, held)
        finally:
            trainer.close()
            del trainer
            release()
    figures["step_ratio"] = figures["ppo"]["step_seconds"] / figures["grpo"]["step_seconds"]
    return figures


def build(model: Path, layers: str, critic: CriticConfig | None, budget: int, device: str) -> Trainer:
    """A trainer on the whole GPU, whose policy does not move."""
    ppo = {"advantage": "verst.runtime.algorithms.advantages:gae", "critic": critic} if critic else {}
    return Trainer(
        ModelConfig(path=str(model), dtype="bfloat16"),
        TrainerConfig(
            megatron={"transformer-impl": layers, "lr": 0.0, "min-lr": 0.0},
            max_logprob_diff=1e9,  # the samples are no engine's
            max_tokens_per_microbatch=budget,
        ),
        AlgorithmConfig.model_validate(
            {
                "steps": 1000,
                "prompts_per_step": 1,
                "samples_per_prompt": 2,
                "routing_replay": False,
                "advantage_whiten": False,
                **ppo,
            }
        ),
        Parallel(0, 1, dist.HashStore(), backend="nccl" if device == "cuda" else "gloo", timeout_s=300),
        train_steps=1000,
    )


def with_values(plan: StepPlan) -> StepPlan:
    """The plan with the critic's term, whose weights are the policy's."""
    (cuts,) = plan.microbatches
    longer = [
        MicroBatch(
            [msgspec.structs.replace(ref, weights=[*ref.weights, *ref.weights]) for ref in cut.samples]
        )
        for cut in cuts
    ]
    return msgspec.structs.replace(plan, terms=["policy", "value"], microbatches=[longer])


def check(trainer: Trainer, plan: StepPlan, held: Held) -> dict[str, float]:
    """Raises AssertionError where the critic is not what this file's head says."""
    first = trainer.train(plan, held).metrics
    rewards = {(ref.group, ref.index): ref.advantage for cut in plan.microbatches[0] for ref in cut.samples}
    targets = np.concatenate(
        [recursion(np.zeros(len(s.response_ids)), rewards[at])[1] for at, s in held.items()]
    )
    half = float((targets**2).mean() / 2)
    assert math.isclose(first["value_loss"], half, rel_tol=1e-4), (first["value_loss"], half)
    values = [alone(trainer, one) for one in held.values()]
    largest = max(float(np.abs(one).max()) for one in values)
    assert largest > 10 * CLOSE, f"the critic hardly moved: {largest}"
    made = [recursion(v, rewards[at]) for at, v in zip(held, values, strict=True)]
    advantages, targets = (np.concatenate([one[i] for one in made]) for i in (0, 1))
    second = trainer.train(plan, held).metrics
    expected = {
        "value_mean": np.concatenate(values).mean(),
        "return_mean": targets.mean(),
        "advantage_mean": advantages.mean(),
        "advantage_std": advantages.std(),
    }
    for name, value in expected.items():
        assert abs(second[name] - value) < CLOSE, (name, second[name], value)
    losses = [first["value_loss"], second["value_loss"]]
    losses += [trainer.train(plan, held).metrics["value_loss"] for _ in range(4)]
    assert losses[-1] < losses[0], losses
    return {
        "first_value_loss": losses[0],
        "sixth_value_loss": losses[-1],
        "largest_value_after_one_update": largest,
        **{f"{name}_difference": abs(second[name] - float(value)) for name, value in expected.items()},
    }


def alone(trainer: Trainer, one: Sample) -> np.ndarray:
    """The critic's values of a sample that has a row for itself, float64 [R]."""
    batches = trainer._microbatches.of_samples([one], trainer.config.max_tokens_per_microbatch)
    found = trainer.models["critic"].pipeline.predict(batches)
    (values,) = response_values.of_samples([one], batches, found, trainer.parallel)
    return np.asarray(values, np.float64)


def recursion(values: np.ndarray, reward: float) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and targets of a sample whose last token earns `reward`, from the definition of GAE."""
    advantages = np.zeros(len(values))
    advantage = following = 0.0
    for at in reversed(range(len(values))):
        earned = reward if at == len(values) - 1 else 0.0
        advantage = earned + GAMMA * following - values[at] + GAMMA * LAM * advantage
        advantages[at], following = advantage, values[at]
    return advantages, advantages + values


def measure(trainer: Trainer, plan: StepPlan, held: Held) -> dict[str, Any]:
    """Seconds of a step and of its phases, and memory."""
    on_gpu = trainer.parallel.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps = [timed(trainer, plan, held, step) for step in range(10, 10 + WARM + TIMED)][WARM:]
    seconds = [one["step"] for one in steps]
    return {
        "step_seconds": statistics.median(seconds),
        "step_seconds_range": [min(seconds), max(seconds)],
        "median_seconds": {name: statistics.median(one[name] for one in steps) for name in steps[0]},
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def timed(trainer: Trainer, plan: StepPlan, held: Held, step: int) -> dict[str, float]:
    """Seconds of a whole step and of its phases."""
    on_gpu = trainer.parallel.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    report = trainer.train(msgspec.structs.replace(plan, step=step), held)
    if on_gpu:
        torch.cuda.synchronize()
    return {"step": time.perf_counter() - began, **report.seconds}


if __name__ == "__main__":
    main()
