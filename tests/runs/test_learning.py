"""Every named algorithm, and every kind of stage that trains a language model, learns the toy task with three seeds.

The engine and the trainer are real, and `benchmarks/learning/loop.py` is the loop between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from benchmarks.learning.names import ON_ROWS, named_algorithms

ROOT = Path(__file__).parents[2]
SEEDS = ("1", "2", "3")
WHOLE_S = 5000
pytestmark = [pytest.mark.long, pytest.mark.timeout(WHOLE_S + 100)]


def _curves(out: Path, *arguments: str) -> dict[str, list[dict[str, Any]]]:
    """The curves of each algorithm. The command exits with 1 where one did not learn, which the tests tell better."""
    command = [sys.executable, "-m", "benchmarks.learning_curves", "--out", str(out), "--seeds", *SEEDS]
    done = subprocess.run(
        [*command, *arguments, "--limit", str(WHOLE_S)],
        cwd=ROOT,
        timeout=WHOLE_S,
        capture_output=True,
        text=True,
    )
    assert out.exists(), done.stderr[-3000:]
    return json.loads(out.read_text())["algorithms"]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    return _curves(tmp_path_factory.mktemp("curves") / "curves.json")


@pytest.mark.parametrize("name", [*named_algorithms(), *ON_ROWS])
def test_it_learns_with_every_seed(name: str, learnt: dict[str, list[dict[str, Any]]]) -> None:
    curves = learnt[name]
    assert len(curves) == len(SEEDS)
    for curve in curves:
        assert curve["after"] >= curve["before"] + 0.2, f"seed {curve['seed']}"


def test_old_answers_spoil_a_run_unless_something_makes_up_for_their_age(tmp_path: Path) -> None:
    """New weights reach the engine every fourth step only."""
    chosen = ("no correction", "OPSM", "clipped ratio")
    found = _curves(tmp_path / "stale.json", "--stale", "4", "--lr", "2e-3", "--algorithms", *chosen)
    after = {name: mean(curve["after"] for curve in found[name]) for name in chosen}
    assert after["OPSM"] > after["no correction"] + 0.1
    assert after["clipped ratio"] > after["no correction"] + 0.1
