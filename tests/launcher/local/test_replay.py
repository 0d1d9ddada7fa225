"""A replayed step is compared in what training decides, and does nothing else that the run did."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import MACHINE, write_recipe
from verst.launcher.check.recording import recording_faults
from verst.launcher.local.replay import _ALONE, figures, show
from verst.launcher.recipe.load import load_recipe
from verst.runtime.metrics.config import wanted
from verst.runtime.run.folder import RunFolder


def test_figures_of_the_generation_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replay generates nothing: no group is dropped, no sample filtered, and memory is used otherwise."""
    folders = [RunFolder(tmp_path / name) for name in ("recorded", "replayed")]
    of_time = {"samples_masked": 3, "samples_dropped": 1, "gpu_peak_allocated_gib": 40.5, "rewards_failed": 2}
    for folder, dropped, more in zip(folders, (7, 0), (of_time, {}), strict=True):
        folder.create()
        sources = {"math": {"share": 1.0, "dropped": dropped, "reward": 0.5}}
        folder.metric(
            kind="step", step=4, loss=0.25, sources=sources, seconds={"step": 1.0 + dropped}, **more
        )
    before, after = (figures(folder, 4) for folder in folders)
    assert before is not None
    assert after is not None
    assert show(before, after, 4) == 0
    after["sources"]["math"]["reward"] = 0.25
    assert show(before, after, 4) == 1
    assert "step 4: 1 of " in capsys.readouterr().out


def test_a_replay_reports_and_tells_nothing_and_can_replay_a_run_that_evaluates(tmp_path: Path) -> None:
    given = [
        "metrics={tensorboard: true, wandb: {}, mlflow: {}, prometheus: {port: 9}}",
        "hooks={run_start: m:f, step_end: m:f, run_end: m:f, metrics: m:f}",
        "data.eval={path: train.jsonl, interval: 2}",
        "algorithm.early_stop={patience: 2}",
        "checkpoint.keep_best=1",
        f"record.source={tmp_path}",
    ]
    recipe = load_recipe(write_recipe(tmp_path), [*given, *_ALONE])
    assert wanted(recipe.metrics) == []
    assert {name: path for name, path in recipe.hooks.paths().items() if path} == {"metrics": "m:f"}
    places = {fault.place for fault in recording_faults(recipe, MACHINE)}
    assert not places & {"checkpoint.keep_best", "algorithm.early_stop"}
