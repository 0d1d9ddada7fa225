"""How much of a model changes in a step, and what a delta of it weighs and costs: SmolLM2-135M, real gradients.

    verst fetch smollm2-135m && python benchmarks/weight_deltas.py

Trains the model a few steps in float32 with Adam on its prompts and answers, at a constant rate and gradients
clipped to norm 1 as in RL, and after each step compares its bfloat16 weights with those before. Also measures the
checksum, and a version's way to the disk and back. Writes results/weight_deltas.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from verst.sync.files.tensor_checksum import checksum
from verst.sync.versions.delta import apply, encode
from verst.sync.versions.local_copy import LocalCopy, default_place
from verst.sync.versions.sender import VersionSender

HERE = Path(__file__).parent


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=HERE.parent / "models/smollm2-135m")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    snapshots, steps = [], []
    for weights in train(options.model, options.lr, options.steps):
        if snapshots:
            steps.append(compare(snapshots[-1], weights))
            print(steps[-1], flush=True)
        snapshots = [*snapshots[-1:], weights]
    result = {
        "figure": "bfloat16 weights before and after each optimizer step; sizes relative to all of it",
        "model": "SmolLM2-135M-Instruct, tied embeddings",
        "bytes": sum(t.nbytes for t in snapshots[-1].values()),
        "optimizer": {"name": "Adam", "lr": options.lr, "betas": [0.9, 0.95], "clip": 1.0, "tokens": TOKENS},
        "steps": steps,
        "checksum_gb_per_core_s": checksum_speed(),
        "folder": folder(snapshots[0], snapshots[1]),
        "machine": f"{os.cpu_count()} x {platform.machine()}, shared with other work",
        "versions": {name: version(name) for name in ("torch", "zstandard", "xxhash")},
        "date": time.strftime("%Y-%m-%d"),
    }
    (HERE / "results/weight_deltas.json").write_text(json.dumps(result, indent=2) + "\n")


TOKENS = 512
THREADS = min(4, len(os.sched_getaffinity(0)))


def train(folder: Path, lr: float, steps: int) -> Any:
    """Yields the bfloat16 weights at the start and after each step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    tokens = tokenizer("\n".join(json.dumps(line) for line in lines), return_tensors="pt").input_ids[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.95))
    yield snapshot(model)
    for step in range(steps):
        batch = tokens[step * TOKENS : (step + 1) * TOKENS].view(4, -1)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield snapshot(model)


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters in bfloat16."""
    return {name: p.detach().to(torch.bfloat16, copy=True) for name, p in model.named_parameters()}


def compare(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> dict[str, float]:
    """What changed, what the deltas weigh, and gigabytes of model per second of one core."""
    total = sum(t.nbytes for t in new.values())
    torch.set_num_threads(1)
    began = time.process_time()
    deltas = {name: encode(old[name], new[name]) for name in new}
    encoded = time.process_time()
    for name, delta in deltas.items():
        assert torch.equal(apply(old[name], delta).view(torch.int16), new[name].view(torch.int16))
    applied = time.process_time()
    torch.set_num_threads(os.cpu_count() or 1)
    changed = sum(int((old[n].view(torch.int16) != new[n].view(torch.int16)).sum()) for n in new)
    return {
        "changed": round(changed / (total / 2), 5),
        "delta": round(sum(d.nbytes for d in deltas.values()) / total, 5),
        "whole_tensors": sum(d.kind == "whole" for d in deltas.values()),
        "encode_gb_per_core_s": round(total / (encoded - began) / 1e9, 3),
        "apply_gb_per_core_s": round(total / (applied - encoded) / 1e9, 3),
    }


def checksum_speed() -> dict[str, float]:
    """Of a tensor of 64 MiB, out of memory, and one of 256 KiB, out of the cache; the best of ten."""
    speeds = {}
    for size in (64 << 20, 256 << 10):
        tensor = torch.ones(size, dtype=torch.uint8)
        times = []
        for _ in range(10):
            began = time.thread_time()
            checksum(tensor)
            times.append(time.thread_time() - began)
        speeds[f"{size >> 10} KiB"] = round(size / min(times) / 1e9, 2)
    return speeds


def folder(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A version whole and the next as deltas, as the transport `delta` has them: bytes, seconds to compare and make
    durable, seconds until a node's copy is that version, read, applied and verified."""
    figures: dict[str, Any] = {"threads": THREADS}
    with tempfile.TemporaryDirectory(dir=HERE) as place:
        root = Path(place)
        sender = VersionSender(root, keep=2, full_every=2, threads=THREADS)
        copy = LocalCopy(default_place(), THREADS)
        for number, weights in ((1, old), (2, new)):
            began = time.perf_counter()
            nbytes = sender.send(number, [(list(weights), list(weights.values()))])
            written = time.perf_counter()
            copy.follow(root, number, 600.0)
            figures["whole" if number == 1 else "deltas"] = {
                "bytes": nbytes,
                "write_s": round(written - began, 2),
                "copy_s": round(time.perf_counter() - written, 2),
            }
        copy.close()
    return figures


if __name__ == "__main__":
    main()
