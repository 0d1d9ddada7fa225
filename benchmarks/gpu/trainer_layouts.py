"""Is a step the same on GPUs in every layout, with Megatron's local layers and with Transformer Engine's?

    NVIDIA_TF32_OVERRIDE=0 python benchmarks/gpu/trainer_layouts.py --out results/

On a machine with two GPUs and Transformer Engine (its matrix products take TF32 unless told not to). Two ranks over
NCCL train the tests' tiny models for two steps: in fp32 each layout must give what one rank with local layers gives,
in bf16 it must come as near to that as one bf16 rank with local layers does; replayed routing must be the given
one; a checkpoint must read alike in the other layers. Writes the differences, and exits 1 on any that is too large.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.runtime.trainer import test_layouts
from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.replay import test_routing_replay
from tests.runtime.trainer.tiny_models import Layout, save_model

LAYERS = ("local", "transformer_engine")
LAYOUTS = {
    "llama": {"one": test_layouts.ONE} | test_layouts.DENSE,
    "qwen3": {name: test_layouts.DENSE[name] for name in ("tp2-sp", "pp2", "cp2")}
    | {"one": test_layouts.ONE},
    "qwen3_moe": {"one": test_layouts.ONE} | test_layouts.MOE,
    "deepseek_v3": {name: test_layouts.MOE[name] for name in ("tp2-sp", "cp2")} | {"one": test_layouts.ONE},
}
# In fp32: log-probabilities in nats, loss and gradient norm relative, at the first step and at the second.
EXACT = {"logprobs": 1e-4, "loss": 1e-4, "grad_norm": 1e-4}
# In bf16 no farther from fp32 than this many times the distance of one bf16 rank with local layers, or than bf16's
# own step of 2^-8 where that rank came nearer by luck.
ROUNDED, STEP = 3.0, 2**-8

Difference = dict[str, float]


def main() -> None:
    """Runs everything and writes one JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="a regular expression for the names of layouts")
    options = parser.parse_args()
    select(options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        ranks = Ranks(Path(folder), job_s=30)
        comparison = Comparison(ranks, Path(folder), options.out / "trainer_layouts.json")
        try:
            comparison.checkpoints()
            comparison.routing()
            comparison.layouts()
        finally:
            ranks.stop()
            for log in sorted(Path(folder).glob("rank-*.log")):
                (options.out / log.name).write_bytes(log.read_bytes()[-500_000:])
    print(f"{len(comparison.cases)} cases, {len(comparison.faults)} faults")
    sys.exit(bool(comparison.faults))


def select(pattern: str) -> None:
    """Leaves out the layouts that the pattern does not find, except the one rank that all are compared with."""
    for layouts in LAYOUTS.values():
        for name in [n for n in layouts if n != "one" and not re.search(pattern, n)]:
            del layouts[name]


class JobFailed(RuntimeError):
    """The ranks could not do what they were asked to; the message has the end of their tracebacks."""


class Comparison:
    """Runs cases on a pair of ranks; `cases` has every difference, `faults` what is too large or failed."""

    def __init__(self, ranks: Ranks, folder: Path, out: Path) -> None:
        self._out = out
        self._ranks = ranks
        self._folder = folder
        self._models = {family: folder / family for family in LAYOUTS}
        for family, path in self._models.items():
            save_model(family, path)
        self.cases: dict[str, Difference] = {}
        self.faults: list[str] = []

    def layouts(self) -> None:
        """Every family, layout, precision and kind of layers against one fp32 rank with local layers."""
        for family, layouts in LAYOUTS.items():
            exact = {
                "float32": self._run(family, layouts["one"], "local", "float32", **test_layouts.FULL_LOSS),
                "bfloat16": self._run(family, layouts["one"], "local", "float32"),
            }
            near = difference(self._run(family, layouts["one"], "local", "bfloat16"), exact["bfloat16"])
            rounded = {key: ROUNDED * max(value, STEP) for key, value in near.items()}
            for layers in LAYERS:
                for name, layout in layouts.items():
                    for dtype in ("float32", "bfloat16"):
                        limits = EXACT if dtype == "float32" else rounded
                        self._compare(
                            f"{family} {name} {layers} {dtype}", limits, exact[dtype], layout=layout
                        )

    def routing(self) -> None:
        """The experts that are told are the experts that are used, in forward and in recomputation."""
        for layers in LAYERS:
            for name, layout in test_routing_replay.LAYOUTS.items():
                case = f"replay {name} {layers} float32"
                try:
                    answers = self._run("qwen3_moe", layout, layers, "float32", **test_routing_replay.REPLAY)
                except JobFailed as error:
                    self._note(case, f"{case}: {error}")
                    continue
                metrics = [report["metrics"] for answer in answers for report in answer["reports"]]
                self.cases[case] = {
                    "routing_wrong": sum(m["routing_wrong"] for m in metrics),
                    "routing_replayed": min(m["routing_replayed"] for m in metrics),
                }
                right = {"routing_wrong": 0, "routing_replayed": test_routing_replay.PAIRS}
                self._note(case, None if self.cases[case] == right else f"{case}: {self.cases[case]}")

    def checkpoints(self) -> None:
        """Written with one kind of layers under TP2 EP2, read with the other kind on one rank."""
        tp2_ep2 = test_layouts.MOE["tp2-ep2-etp1"]
        for family, spread in (("qwen3_moe", tp2_ep2), ("llama", test_layouts.DENSE["tp2-sp"])):
            for writer, reader in (LAYERS, LAYERS[::-1]):
                path = self._folder / f"{family}-{writer}" / "step-000002"
                path.parent.mkdir()
                case = f"{family} checkpoint of {writer} read by {reader}"
                try:
                    written = self._run(family, spread, writer, "float32", save=path)
                    read = self._run(family, test_layouts.ONE, reader, "float32", load=path, steps=0)
                except JobFailed as error:
                    self._note(case, f"{case}: {error}")
                    continue
                self.cases[case] = {"logprobs": largest(last(written)["after"], last(read)["before"])}
                near = self.cases[case]["logprobs"] <= EXACT["logprobs"]
                self._note(case, None if near else f"{case}: {self.cases[case]}")

    def _compare(self, case: str, limits: Difference, exact: list[dict[str, Any]], *, layout: Layout) -> None:
        family, _, layers, dtype = case.split()
        try:
            # The whole loss clips, and rounding moves tokens over that edge: bf16 gets the plain one.
            loss = test_layouts.FULL_LOSS if dtype == "float32" else {}
            self.cases[case] = found = difference(self._run(family, layout, layers, dtype, **loss), exact)
        except JobFailed as error:
            self._note(case, f"{case}: {error}")
            return
        over = {key: value for key, value in found.items() if not value <= limits[key]}  # NaN is over too
        self._note(case, f"{case}: {over}, at most {limits}" if over else None)

    def _note(self, case: str, fault: str | None) -> None:
        """Prints a case and writes what there is so far."""
        print(case, self.cases.get(case, ""), *(["FAULT", fault] if fault else []), flush=True)
        if fault:
            self.faults.append(fault)
        found = {"cases": self.cases, "faults": self.faults, **machine()}
        self._out.write_text(json.dumps(found, indent=1) + "\n")

    def _run(self, family: str, layout: Layout, layers: str, dtype: str, **job: Any) -> list[dict[str, Any]]:
        layout = Layout(layout.world_size, layout.megatron | {"transformer-impl": layers})
        options = {"steps": 2, "dtype": dtype}
        try:
            return self._ranks.run(self._models[family], layout, **options | job)
        except pytest.fail.Exception as error:  # a rank raised, died or did not answer
            raise JobFailed(str(error)[-1500:]) from error


def difference(answers: list[dict[str, Any]], exact: list[dict[str, Any]]) -> Difference:
    """The largest over steps and ranks."""
    mine, theirs = last(answers), last(exact)
    pairs = [(m, t) for a in answers for m, t in zip(a["reports"], theirs["reports"], strict=True)]
    relative = {
        key: max(abs(m[key] - t[key]) / abs(t[key]) for m, t in pairs) for key in ("loss", "grad_norm")
    }
    return {"logprobs": largest(mine["before"], theirs["before"]), **relative}


def last(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of a rank of the last pipeline stage."""
    return next(answer for answer in answers if answer["before"] is not None)


def largest(mine: list[list[float]], theirs: list[list[float]]) -> float:
    """The largest absolute difference of two samples' log-probabilities."""
    return float(np.abs(np.concatenate(mine) - np.concatenate(theirs)).max())


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    names = ("torch", "megatron-core", "transformer-engine", "verst")
    return {
        "machine": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "date": datetime.date.today().isoformat(),
    }


if __name__ == "__main__":
    main()
