"""A run that kept its groups is trained again without engines, and one of its steps alone: with the same figures."""

from __future__ import annotations

import subprocess
import sys

import pytest
from safetensors.torch import load_file

from tests.runs.test_tiny_moe import trajectory
from tests.runs.tiny_moe import SHORT as TINY
from tests.runs.tiny_moe import tiny_run
from tests.runs.verst_run import ROOT, VerstRun
from verst.launcher.local.replay import figures
from verst.runtime.dashboard.columns import flat
from verst.runtime.metrics.glossary import find
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.recording import Recorded, recorded_steps, shard_folders

# A reward that differs from answer to answer, so that every step has a gradient.
SHORT = (*TINY, "rollout.reward=tests.runs.rewards:length")
pytestmark = [pytest.mark.long, pytest.mark.timeout(1400)]


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory) -> VerstRun:
    run = tiny_run(
        model, tmp_path_factory.mktemp("runs") / "recorded", *SHORT, "record.keep=true", "checkpoint.keep=9"
    )
    run.finish(timeout=1300)
    return run


def test_all_groups_are_kept_with_the_steps_that_trained_on_them(recorded):
    samples = recorded.folder / "samples"
    steps = recorded_steps(samples)
    assert sorted(steps) == [5, 6, 7, 8]
    kept = Recorded(shard_folders(samples))
    assert list(kept) == sorted(id for ids in steps.values() for id in ids) == list(range(16))
    assert any(samples.glob("shard-0/kept/*.journal")) or any(samples.glob("shard-0/*.journal"))
    rewards = [[s.reward for s in kept.read(id).samples] for id in steps[5]]
    line = next(line for line in recorded.lines("step") if line["step"] == 5)
    assert line["reward"] == pytest.approx(sum(map(sum, rewards)) / 16)


def test_a_run_on_the_recording_starts_no_engine_and_is_bit_for_bit_the_recorded_one(
    model, recorded, tmp_path
):
    again = tiny_run(model, tmp_path / "again", *SHORT)
    again.finish(f"--train-only={recorded.folder}", timeout=1300)
    assert trajectory(again) == trajectory(recorded)
    assert all(grad_norm > 0 for _, _, grad_norm, _ in trajectory(again))
    for step in range(5, 9):
        ours, theirs = (figures(RunFolder(run.folder), step) for run in (again, recorded))
        assert ours == theirs
    exports = [load_file(next(run.folder.glob("export/*.safetensors"))) for run in (again, recorded)]
    assert exports[0].keys() == exports[1].keys()
    assert all(exports[0][name].equal(exports[1][name]) for name in exports[0])
    assert not list(again.folder.glob("logs/life-0/rollout"))
    assert again.lines("engine_ready", "events.jsonl") == []


def test_with_another_learning_rate_tokens_count_as_those_of_other_weights(model, recorded, tmp_path):
    other = tiny_run(model, tmp_path / "other", *SHORT)
    other.finish(f"--train-only={recorded.folder}", "trainer.megatron.lr=2e-3", timeout=1300)
    last = other.lines("step")[-1]
    assert last["ratio"] != 1.0, "the engine's log-probabilities are the old policy's"
    assert recorded.lines("step")[-1]["ratio"] == 1.0


def test_a_run_that_only_generates_keeps_groups_that_another_run_trains_on(model, tmp_path):
    answers = tiny_run(model, tmp_path / "answers", *SHORT, "algorithm.steps=2")
    told = answers.finish("--rollout-only", timeout=1300)
    assert "generated " in told
    assert "tokens/s, scoring and storing included" in told
    assert [(line["step"], line["kind"]) for line in answers.lines("rollout")] == [
        (5, "rollout"),
        (6, "rollout"),
    ]
    assert sorted(recorded_steps(answers.folder / "samples")) == [5, 6]
    assert not list(answers.folder.glob("checkpoints/step-*"))
    keys = {key for line in answers.lines("rollout") for key, _ in flat(line)}
    assert [key for key in sorted(keys) if find("rollout", key) is None] == []
    trained = tiny_run(model, tmp_path / "trained", *SHORT, "algorithm.steps=2")
    trained.finish(f"--train-only={answers.folder}", timeout=1300)
    assert [line["reward"] for line in trained.lines("step")] == [
        line["reward"] for line in answers.lines("rollout")
    ]
    first, second = trained.lines("step")
    assert first["ratio"] == 1.0, "its tokens are of the weights that it trains"
    assert second["staleness"] == 1
    assert second["ratio"] != 1.0


def replay(run: VerstRun, step: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "replay", str(run.folder), f"--step={step}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1300, check=False)


def test_a_step_is_replayed_from_the_checkpoint_before_it_with_equal_figures(recorded):
    done = replay(recorded, 7)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "figures are equal to the recorded ones, bit for bit" in done.stdout
    assert sorted(path.name for path in recorded.folder.glob("checkpoints/step-*"))[-1] == "step-000008"


def test_a_step_whose_checkpoint_is_gone_is_refused(recorded):
    done = replay(recorded, 9)
    assert done.returncode == 2
    assert "has no figures of step 9" in done.stderr
