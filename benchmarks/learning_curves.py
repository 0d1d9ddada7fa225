"""Does each named algorithm make a tiny model learn? One engine and one process of trainers for all of them, on a CPU.

    python -m benchmarks.learning_curves --out benchmarks/results/learning_curves.json [--algorithms GRPO GSPO]
        [--seeds 1 2 3] [--limit 3000]

The keys of each algorithm are those of docs/algorithms.md. A dense model of half a million parameters first imitates
demonstrations of the toy task (reverse two digits), once. From there each algorithm trains it for some steps with
each seed: SGLang generates, Megatron trains, and the weights of each step go through a folder (`learning/loop.py`).
The stages SFT and DPO have curves, too. The mean reward before and after is measured on the same problems for all.

`--stale N` sends the weights to the engine only every N steps, and compares ways to make up for that: see `stale()`.

The figures are written after each curve. No curve begins after `--limit` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.learning.loop import PROMPTS, SAMPLES, Loop, loop
from benchmarks.learning.names import ON_ROWS, named_algorithms, stale
from benchmarks.learning.task import DIGITS

STEPS, LR = 40, 1e-3
LEARNT = 0.1  # the mean reward afterwards is at least so much above that before
LR_OF = {"PPO with a critic": 3e-4}  # it takes four updates a step


async def one(curves: Loop, name: str, seed: int, **options: Any) -> dict[str, Any]:
    """The curve of a named algorithm or stage."""
    if name in ON_ROWS:
        keys, lr, model = ON_ROWS[name]
        curve = await curves.on_rows(keys, seed, lr, model) | {"lr": lr}
    else:
        given = {"steps": STEPS, "lr": LR_OF.get(name, LR), **options}
        keys = stale()[name] if given.get("stale", 1) > 1 else named_algorithms()[name]
        curve = await curves.curve(keys, seed, **given) | {"lr": given["lr"], "stale": given.get("stale", 1)}
    return {"keys": keys, **curve, "learnt": curve["after"] >= curve["before"] + LEARNT}


async def main() -> None:
    """All curves that are not in the file yet. Exits with 1 if one did not learn."""
    options = arguments()
    until = time.monotonic() + options.limit
    figures = json.loads(options.out.read_text()) if options.out.exists() else {"algorithms": {}}
    every = list(stale()) if options.stale > 1 else [*named_algorithms(), *ON_ROWS]
    asked = {"steps": options.steps, "lr": options.lr, "stale": options.stale}
    given = {name: value for name, value in asked.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="verst-curves-") as folder:
        async with loop(Path(folder)) as curves:
            for seed in options.seeds:
                for name in options.algorithms or every:
                    found = figures["algorithms"].setdefault(name, [])
                    if any(curve["seed"] == seed for curve in found) or time.monotonic() > until:
                        continue
                    found.append(await one(curves, name, seed, **given))
                    last = found[-1]
                    print(
                        f"{name}, seed {seed}: reward {last['before']:.3f} -> {last['after']:.3f}", flush=True
                    )
                    write(options.out, figures)
    if slow := [n for n, found in figures["algorithms"].items() if not all(c["learnt"] for c in found)]:
        sys.exit(f"did not learn with every seed: {', '.join(slow)}")


def write(out: Path, figures: dict[str, Any]) -> None:
    """Writes the figures with what they were measured on."""
    figures |= {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, no GPU",
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("verst", "torch", "sglang", "megatron-core", "transformers")
        },
        "task": f"reverse {DIGITS} digits; reward: the share of digits at their place",
        "samples_per_step": PROMPTS * SAMPLES,
        "learnt_when": f"the mean reward afterwards is at least {LEARNT} above that before",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(out)


@functools.cache
def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--algorithms", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help=f"by default {STEPS}")
    parser.add_argument("--lr", type=float, help=f"by default {LR}, for PPO less")
    parser.add_argument("--stale", type=int, default=1, help="steps between weight versions of the engine")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which no curve begins")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())
