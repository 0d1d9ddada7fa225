"""Every named algorithm makes a tiny model learn its toy task, with a real engine and a real trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def curves(out: Path, *arguments: str) -> dict:
    """The figures of a command, whatever its exit code."""
    command = [sys.executable, "-P", str(ROOT / "benchmarks/learning_curves.py"), "--out", str(out)]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=5400,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert out.exists(), done.stdout + done.stderr
    return json.loads(out.read_text())["algorithms"]


@pytest.mark.long
@pytest.mark.timeout(5500)
def test_every_named_algorithm_learns_with_three_seeds(tmp_path):
    found = curves(tmp_path / "curves.json", "--limit=5000")
    assert {"GRPO", "Dr. GRPO", "DAPO", "RLOO", "REINFORCE++", "GSPO", "CISPO", "GMPO"} <= found.keys()
    assert {name: [c["seed"] for c in algorithm["curves"]] for name, algorithm in found.items()} == {
        name: [1, 2, 3] for name in found
    }
    rewards = {
        f"{name}, seed {curve['seed']}": (curve["reward"][0], sum(curve["reward"][-5:]) / 5)
        for name, algorithm in found.items()
        for curve in algorithm["curves"]
    }
    assert {name: pair for name, pair in rewards.items() if pair[1] < pair[0] + 0.1} == {}
