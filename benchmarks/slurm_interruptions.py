"""How long a run on Slurm takes to save and to come back, on the tests' cluster of six virtual nodes on one machine.

`python benchmarks/slurm_interruptions.py` runs tests/cluster/test_whole_runs.py's test of every interruption, which
also asserts that the weights at the end are those of an undisturbed run, and writes
results/slurm_interruptions.json. One machine does the work of all six nodes: the seconds to the next step are
mostly five processes importing torch at once. Slurm holds a requeued job back for 6 s there, and calls a silent node
dead after some 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
TEST = "tests/cluster/test_whole_runs.py::test_whatever_interrupts_a_run_it_ends_with_the_same_weights"


def main() -> None:
    """Runs the test, unless its seconds are at hand, and keeps them."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--seconds", type=Path, help="of a test run with VERST_INTERRUPTIONS set to this file"
    )
    at_hand = parser.parse_args().seconds
    seconds = json.loads(at_hand.read_text()) if at_hand else measure()
    slurm = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.strip()
    result = {
        "figure": "seconds from the signal to the checkpoint, and from the job's start to the next step",
        "interruptions": seconds,
        "machine": f"{os.cpu_count()} x {platform.machine()}, no GPU; two trainer ranks, three engines",
        "versions": {
            "slurm": slurm,
            **{name: version(name) for name in ("torch", "sglang", "megatron-core")},
        },
        "date": time.strftime("%Y-%m-%d"),
    }
    (HERE / "results/slurm_interruptions.json").write_text(json.dumps(result, indent=2) + "\n")


def measure() -> list[dict[str, float | str | None]]:
    """What the test writes down."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        command = [sys.executable, "-P", "-m", "pytest", "-m", "long", TEST]
        subprocess.run(
            command, cwd=HERE.parent, check=True, env=os.environ | {"VERST_INTERRUPTIONS": str(out)}
        )
        return json.loads(out.read_text())


if __name__ == "__main__":
    main()
