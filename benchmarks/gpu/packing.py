"""What does a training step take with packed sequences, and what with padded rows, on one GPU?

    python benchmarks/gpu/packing.py --out results/ [--samples 64] [--budget 16384]

Qwen3-0.6B whole, a few layers of Qwen3-30B-A3B's width and of a narrow DeepSeek-V3, with random weights in bf16, with
Megatron's local layers and with Transformer Engine's, on samples of chat-like and of reasoning-like lengths
(`benchmarks/padding.py`).

First it checks that packing is right: each sample has the log-probabilities in a packed row that it has alone, to what
bf16 rounds, and they stay the same bit by bit when all other sequences of the row have other tokens. It ends if not.

Then it times steps of the same samples in the same budget of tokens. Packed is as `plan_step` plans. Padded is as it
planned before: rows of the longest sample. There each sample gets tokens behind its end that are not trained on, up to
the longest of its micro-batch, so both ways run the same kernels. Figures are medians.
"""

from __future__ import annotations

import argparse
import json
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

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.shapes import release, write_model
from benchmarks.gpu.trainer_speed import build, machine, show
from benchmarks.padding import KINDS, lengths_of, planned, rows
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef, StepPlan
from verst.runtime.trainer.trainer import Trainer

SHAPES = {"qwen3-0.6b": 28, "qwen3-30b-a3b": 4, "latent": 4}  # layers of each
VOCABULARY = 100_000  # of the random tokens
PROMPT = 0.3  # the share of a sample that is its prompt
WARM, TIMED = 2, 5
# Nats between a packed sample and the same alone, in bf16: the mean over its tokens, and any token.
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 0.02, 1.0


def main() -> None:
    """Checks and measures every shape with every kind of layers, and writes one JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--budget", type=int, default=16_384, help="tokens of a micro-batch")
    parser.add_argument("--implementations", nargs="+", default=["local", "transformer_engine"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument(
        "--shorter", type=int, default=1, help="divide all lengths, to try this without a GPU"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"samples": options.samples, "budget": options.budget, **machine()}
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shapes:
            model = write_model(Path(folder) / shape, shape, SHAPES.get(shape, 2), device)
            for layers in options.implementations:
                trainer = build(model, layers, replay=False, device=device)
                try:
                    for kind in options.kinds:
                        lengths = [max(8, n // options.shorter) for n in lengths_of(kind, options.samples)]
                        vocabulary = min(VOCABULARY, trainer.model.args.vocab_size)
                        samples = [sample(i, n, vocabulary) for i, n in enumerate(lengths)]
                        figures = {"correct": check(trainer, samples[:12], vocabulary)}
                        figures |= measure(trainer, samples, options.budget)
                        show(found, f"{shape} {layers} {kind}", figures)
                        (options.out / "packing.json").write_text(json.dumps(found, indent=1) + "\n")
                finally:
                    trainer.close()
                    del trainer
                    release()


def sample(index: int, length: int, vocabulary: int, seed: int = 0) -> Sample:
    """Random tokens, scored as if the present policy had written them."""
    random = np.random.default_rng((seed, index))
    prompt = max(1, int(PROMPT * length))
    response = length - prompt
    return Sample(
        group=index,
        index=0,
        prompt_ids=random.integers(0, vocabulary, prompt, dtype=np.int32),
        response_ids=random.integers(0, vocabulary, response, dtype=np.int32),
        logprobs=np.full(response, -12.0, np.float32),
        loss_mask=np.ones(response, np.uint8),
        weight_versions=np.zeros(response, np.int32),
        reward=float(index % 2),
        finish="stop",
        signals={"temperature": np.ones(response, np.float32)},
    )


def check(trainer: Trainer, samples: Sequence[Sample], vocabulary: int) -> dict[str, Any]:
    """Raises AssertionError if a sample differs in a packed row, or depends on its neighbours there."""
    packed = scored(trainer, samples)
    differences = [
        np.abs(mine - scored(trainer, [one])[0]) for one, mine in zip(samples, packed, strict=True)
    ]
    mean = max(float(one.mean()) for one in differences)
    largest = max(float(one.max()) for one in differences)
    assert mean < MEAN_DIFFERENCE, f"packed and alone differ by {mean} nats per token"
    assert largest < LARGEST_DIFFERENCE, f"packed and alone differ by {largest} nats"
    middle = len(samples) // 2
    others = [
        one if i == middle else sample(i, one.length, vocabulary, seed=1) for i, one in enumerate(samples)
    ]
    again = scored(trainer, others)
    assert not np.array_equal(again[0], packed[0]), "other tokens have the same log-probabilities"
    apart = float(np.abs(again[middle] - packed[middle]).max())
    dense = trainer.model.transformer_config.num_moe_experts is None
    # Other tokens go to other experts, whose products then have other shapes: that may round differently.
    assert apart < LARGEST_DIFFERENCE if not dense else apart == 0, (
        f"a neighbour's tokens change it by {apart}"
    )
    return {"largest_mean_difference": mean, "largest_difference": largest, "by_neighbours": apart}


def scored(trainer: Trainer, samples: Sequence[Sample]) -> list[np.ndarray]:
    """The samples' log-probabilities, from as few micro-batches as the trainer's budget allows."""
    found = trainer.logprobs(samples)
    assert found is not None
    return found


def measure(trainer: Trainer, samples: Sequence[Sample], budget: int) -> dict[str, Any]:
    """The figures of steps with packed sequences and with padded rows, by turns."""
    lengths = [one.length for one in samples]
    ways = {"packed": packed_step(samples, budget), "padded": padded_step(samples, budget)}
    found: dict[str, Any] = {"real_tokens": sum(lengths)}
    for way, (plan, held) in ways.items():
        if trainer.parallel.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = [timed(trainer, plan, held, step) for step in range(WARM + TIMED)]
        seconds = statistics.median(times[WARM:])
        found[way] = {
            "step_seconds": seconds,
            "step_seconds_range": [min(times[WARM:]), max(times[WARM:])],
            "real_tokens_per_s": sum(lengths) / seconds,
            "tokens_per_real_one": sum(one.length for one in held.values()) / sum(lengths),
            "micro_batches": len(plan.microbatches[0]),
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        }
    found["step_ratio"] = found["packed"]["step_seconds"] / found["padded"]["step_seconds"]
    return found


Held = dict[tuple[int, int], Sample]


def packed_step(samples: Sequence[Sample], budget: int) -> tuple[StepPlan, Held]:
    """A step of packed sequences, and its samples by name."""
    plan = planned([one.length for one in samples], budget, 1)
    trained = sum(len(one.response_ids) for one in samples)
    cuts = [
        MicroBatch([msgspec.structs.replace(ref, weights=[1 / trained]) for ref in micro.samples])
        for micro in plan.microbatches[0]
    ]
    return msgspec.structs.replace(plan, microbatches=[cuts]), {(s.group, s.index): s for s in samples}


def padded_step(samples: Sequence[Sample], budget: int) -> tuple[StepPlan, Held]:
    """The same step of rows of the longest sample, each sample with untrained tokens up to that length."""
    trained = sum(len(one.response_ids) for one in samples)
    waiting = sorted(samples, key=lambda one: -one.length)
    held, cuts = {}, []
    for lengths in rows([one.length for one in samples], budget, 1):
        row, waiting = waiting[: len(lengths)], waiting[len(lengths) :]
        for one in row:
            held[one.group, one.index] = extended(one, lengths[0])
        cuts.append(
            MicroBatch(
                [
                    SampleRef(s.group, s.index, 0, lengths[0], 1.0 - 2 * (s.group % 2), [1 / trained])
                    for s in row
                ]
            )
        )
    return StepPlan(step=0, terms=["policy"], microbatches=[cuts]), held


def extended(one: Sample, length: int) -> Sample:
    """The sample with tokens behind its end that no loss sees, `length` in all."""
    more = length - one.length

    def longer(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros(more, array.dtype)])

    return msgspec.structs.replace(
        one,
        response_ids=longer(one.response_ids),
        logprobs=longer(one.logprobs),
        loss_mask=longer(one.loss_mask),
        weight_versions=longer(one.weight_versions),
        signals={name: longer(values) for name, values in one.signals.items()},
    )


def timed(trainer: Trainer, plan: StepPlan, held: Held, step: int) -> float:
    """Seconds of a step."""
    plan = msgspec.structs.replace(plan, step=step)
    on_gpu = trainer.parallel.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    trainer.train(plan, held, None)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
