"""Does reinforcement learning survive an engine that routes otherwise than the trainer, with replay and without?

    python benchmarks/routing_learning.py --out benchmarks/results/routing_learning.json [--seeds 1 2 3]
    python benchmarks/routing_learning.py --out results/routing_learning.json --device cuda --parallel 6 --limit 560

Runs `recipes/tiny-moe.yaml` in bf16 through `verst run` against engines whose routers choose by disturbed logits
(`routing_disturbance/`): for each seed once on the engine's routing and once on the trainer's own. The model is random,
so the supervised steps come first; they know no engine and so no disturbance. The loss divides by the engine's own
probabilities (`trainer.old_logprobs: rollout`), as asynchronous runs do.

With `--parallel` runs go side by side, on a GPU all on the first one: trainer and engine of each share it, with their
weights sent by gloo. The figures are written every few seconds, so a command that is cut off leaves the curves so far;
past `--limit` seconds the runs are ended. What each run prints is in RUNS/NAME.log, its processes' logs in RUNS/NAME.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.routing_curves import LIMITS, curve_of, figures, summary, verdict
from verst.runtime.data.models import tiny_moe
from verst.runtime.data.tasks import reversal

ROOT = Path(__file__).parents[1]
PLUGIN = Path(__file__).parent / "routing_disturbance"
EVERY_S = 5.0  # figures are written so often
LAST_LINES = 40  # of a failed run's output
# Kernels that compile little and need no download; a cache of tokens that leaves room for the other runs. SGLang takes
# its share of what is free when it starts, of which the other runs take some meanwhile: hence a share and a number.
ON_A_GPU = (
    "weights.backend=gloo",
    "rollout.sglang.attention-backend=triton",
    "rollout.sglang.sampling-backend=pytorch",
    "rollout.sglang.grammar-backend=none",
    "rollout.sglang.disable-cuda-graph=true",
    "rollout.sglang.mem-fraction-static=0.3",
    "rollout.sglang.max-total-tokens=16384",
)


@dataclass
class Run:
    """One run, from its start."""

    seed: int
    mode: str
    folder: Path
    process: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    cut_off: bool = False

    @property
    def log(self) -> Path:
        """What `verst run` prints."""
        return self.folder.with_suffix(".log")

    def row(self) -> dict[str, Any]:
        """Its figures so far."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            whole = (self.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
            lines = [json.loads(line) for line in whole if line.endswith("\n")]
        score = {line["when"]: line["reward"] for line in lines if line["kind"] == "eval"}
        curve = curve_of(lines)
        code = self.process.poll()
        failed = code not in (None, 0) and not self.cut_off
        row = {
            "seed": self.seed,
            "replay": self.mode,
            "state": "runs"
            if code is None
            else "cut off"
            if self.cut_off
            else "failed"
            if failed
            else "ended",
            "verdict": verdict(curve, failed),
            "held_out_before": score.get("before"),
            "held_out_after": score.get("after"),
            "wall_seconds": (self.ended or time.monotonic()) - self.began,
            **figures(curve),
            "curve": curve,
        }
        if failed:
            last = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            row |= {"exit_code": code, "last_lines": last, "logs": str(self.folder / "logs")}
        return row

    def end(self, number: signal.Signals) -> None:
        """Signals it, if it runs."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.process.send_signal(number)


def main() -> None:
    """Every run, and the figures meanwhile. Exits with 1 when a run failed."""
    options = arguments()
    runs_dir = options.runs.absolute()
    model = reversal(tiny_moe(runs_dir / "tiny-moe-model"))
    waiting = [(seed, mode) for seed in options.seeds for mode in options.modes]
    runs: list[Run] = []
    until = time.monotonic() + options.limit
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the runs are ended too
    try:
        while waiting or any(run.ended is None for run in runs):
            while waiting and sum(run.ended is None for run in runs) < options.parallel:
                runs.append(start(options, runs_dir, model, *waiting.pop(0)))
            time.sleep(1.0 if len(runs) == 1 else EVERY_S)
            take_note(runs)
            write(options, runs)
            if time.monotonic() > until:
                break
    finally:
        end_all(runs)
        write(options, runs)
    if any(run.row()["state"] == "failed" for run in runs):
        sys.exit("a run failed: its last lines are in the figures")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--noise", type=float, default=1.0, help="standard deviation, on the routers' logits")
    parser.add_argument("--lr", default="5e-4")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--modes", nargs="+", default=["rollout", "off"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--parallel", type=int, default=1, help="runs side by side")
    parser.add_argument("--limit", type=float, default=6 * 3600.0, help="seconds for all runs together")
    parser.add_argument("overrides", nargs="*")
    return parser.parse_args()


def start(options: argparse.Namespace, runs: Path, model: Path, seed: int, mode: str) -> Run:
    """Starts one run."""
    name = f"routing-{mode}-{seed}-{int(time.time())}"
    settings = [
        f"name={name}",
        f"runs_dir={runs}",
        f"model.path={model}",
        "model.dtype=bfloat16",
        f"data.train.path={model}/train.jsonl",
        f"data.eval.path={model}/eval.jsonl",
        f"algorithm.stages.0.data.path={model}/demonstrations.jsonl",
        "algorithm.stages.0.steps=100",
        f"algorithm.seed={seed}",
        f"algorithm.steps={options.steps}",
        f"algorithm.routing_replay={mode}",
        f"trainer.megatron.lr={options.lr}",
        "trainer.old_logprobs=rollout",
        "checkpoint.interval=1000",
    ]
    if options.parallel > 1:  # each run would give its processes the same cores of their own
        settings.append("placement.affinity=none")
    if options.device == "cuda":
        settings += ON_A_GPU
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])),
        "ROUTING_NOISE": str(options.noise),
        # Twice the same: one GPU for the trainer's rank and the engine.
        "CUDA_VISIBLE_DEVICES": "" if options.device == "cpu" else "0,0",
    }
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "run", str(ROOT / "recipes/tiny-moe.yaml")]
    folder = runs / name
    with folder.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *settings, *options.overrides],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # signals of a terminal come through `end_all`
        )
    print(f"{name}: started, its output is in {folder}.log", flush=True)
    return Run(seed, mode, folder, process)


def take_note(runs: list[Run]) -> None:
    """Notes which runs have ended and says what came out."""
    for run in runs:
        if run.ended is None and run.process.poll() is not None:
            run.ended = time.monotonic()
            print(json.dumps({k: v for k, v in run.row().items() if k != "curve"}), flush=True)


def end_all(runs: list[Run], patience_s: float = 20.0) -> None:
    """Ends what still runs. A run's processes die with its launcher."""
    for run in runs:
        run.cut_off = run.process.poll() is None
        run.end(signal.SIGTERM)
    until = time.monotonic() + patience_s
    for run in runs:
        try:
            run.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.end(signal.SIGKILL)
            run.process.wait(patience_s)
    take_note(runs)


def write(options: argparse.Namespace, runs: list[Run]) -> None:
    """The figures of all runs so far, in one piece."""
    rows = [run.row() for run in runs]
    found = {
        "noise": options.noise,
        "lr": options.lr,
        "steps": options.steps,
        "device": options.device,
        "parallel": options.parallel,
        "overrides": options.overrides,
        "date": datetime.date.today().isoformat(),
        "unstable_when": LIMITS,
        "modes": summary(rows),
        "runs": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    partial.replace(options.out)


if __name__ == "__main__":
    main()
