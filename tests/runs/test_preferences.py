"""Whole runs of recipes/dpo.yaml: pairs alone teach which answer is right, also over an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs.verst_run import ROOT, VerstRun, assert_same_stage
from verst.runtime.dashboard.columns import flat
from verst.runtime.data.models import tiny_moe
from verst.runtime.data.tasks import reversal
from verst.runtime.metrics.glossary import find


@pytest.fixture(scope="module")
def three_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny mixture of experts with the task of three digits, a hundred of which are held out."""
    folder = tmp_path_factory.mktemp("models") / "tiny-moe"
    tiny_moe(folder)
    return reversal(folder, digits=3, train=900, held_out=100)


def of_pairs(model: Path, folder: Path, *overrides: str) -> VerstRun:
    files = (
        f"model.path={model}",
        f"algorithm.stages.0.data.path={model}/preferences.jsonl",
        f"algorithm.stages.0.eval.path={model}/eval_preferences.jsonl",
    )
    return VerstRun(str(ROOT / "recipes/dpo.yaml"), folder, (*files, *overrides))


@pytest.mark.long
@pytest.mark.timeout(1300)
def test_pairs_alone_teach_which_answer_is_right(three_digits: Path, tmp_path: Path) -> None:
    run = of_pairs(three_digits, tmp_path / "run")
    run.finish(timeout=1200)
    held_out = run.lines("stage_eval")
    assert (held_out[0]["step"], held_out[0]["dpo_accuracy"], held_out[0]["rows"]) == (0, 0.0, 100)
    assert held_out[0]["dpo_loss"] == pytest.approx(0.6931, abs=1e-4)  # log 2: the model is the reference
    assert held_out[-1]["dpo_accuracy"] > 0.9, held_out
    assert held_out[-1]["dpo_loss"] < 0.4
    steps = run.lines("stage_step")
    assert steps[-1]["dpo_margin"] > 1
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    keys = {(line["kind"], key) for line in lines for key, _ in flat(line)}
    assert [pair for pair in sorted(keys) if find(*pair) is None] == []
    assert not [path for path in run.folder.glob("logs/life-0/*/*") if "rollout" in path.name]


@pytest.mark.long
@pytest.mark.timeout(700)
def test_a_run_killed_in_the_middle_of_pairs_goes_on_with_their_reference(
    three_digits: Path, tmp_path: Path
) -> None:
    """Supervised steps come first, so only checkpoints hold the reference."""
    first = f"{{kind: sft, data: {{path: {three_digits}/demonstrations.jsonl}}, steps: 2, batch_size: 8, lr: 1e-3}}"
    pairs = (
        f"{{kind: dpo, data: {{path: {three_digits}/preferences.jsonl}}, steps: 4, batch_size: 8, lr: 1e-3}}"
    )

    def run(name: str) -> VerstRun:
        stages = f"algorithm.stages=[{first}, {pairs}]"
        overrides = (f"model.path={three_digits}", stages, "checkpoint.interval=1")
        return VerstRun(str(ROOT / "recipes/dpo.yaml"), tmp_path / name, overrides)

    whole, killed = run("whole"), run("killed")
    whole.finish()
    killed.kill_and_resume("stage_step", 4)
    assert_same_stage(killed, whole)
