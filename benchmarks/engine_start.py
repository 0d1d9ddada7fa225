"""What the start of an engine costs on a CPU: its processes as forks of the first one, beside spawned ones.

    python -P benchmarks/engine_start.py [--rounds 3] [--out benchmarks/results/engine_start.json]

Starts SGLang's server of a tiny mixture of experts, in turn in both ways, and adds up the CPU seconds of all its
processes until it serves. A thread that OpenBLAS starts on import makes the engine spawn, as it did before.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from tests.runtime.rollout import tiny_models
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine import arguments
from verst.runtime.rollout.engine.engine import Engine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/engine_start.json"
_DEADLINE_S = 600.0
_THREADS = {"forked": "1", "spawned": "2"}  # of OpenBLAS


async def measure(model: Path, how: str, log: Path) -> tuple[float, float]:
    """CPU seconds of an engine's processes, and seconds on the clock, from its start until it serves."""
    make = arguments.engine_environment

    def environment(*given: Any) -> dict[str, str]:
        return make(*given) | {"OPENBLAS_NUM_THREADS": _THREADS[how]}

    config = RolloutConfig(reward="unused:here", start_timeout_s=_DEADLINE_S)
    served = ModelConfig(path=str(model), dtype="float32")
    began = time.monotonic()
    with mock.patch.object(arguments, "engine_environment", environment):
        engine = await Engine.start(served, config, log=log, routing=True, seed=1, device="cpu")
    took = time.monotonic() - began
    processes = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    used = sum(sum(process.cpu_times()[:2]) for process in processes)
    await engine.stop()
    return used, took


def main() -> None:
    """Measures both ways in turn, and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found: dict[str, list[tuple[float, float]]] = {how: [] for how in _THREADS}
    with tempfile.TemporaryDirectory(prefix="verst-engine-") as folder:
        model = tiny_models.save("qwen3_moe", Path(folder) / "model")
        for number in range(options.rounds):
            for how in _THREADS:
                log = Path(folder) / f"{how}-{number}.log"
                found[how].append(asyncio.run(measure(model, how, log)))
    cpu = {how: statistics.median(used for used, _ in of) for how, of in found.items()}
    figures = {
        "figure": "CPU seconds of all processes of an engine until it serves, and seconds on the clock (medians)",
        "cpu_s": {how: round(seconds, 1) for how, seconds in cpu.items()},
        "wall_s": {how: round(statistics.median(took for _, took in of), 1) for how, of in found.items()},
        "spawned_over_forked_cpu": round(cpu["spawned"] / cpu["forked"], 2),
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in ("sglang", "torch")},
        "date": datetime.date.today().isoformat(),
    }
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
