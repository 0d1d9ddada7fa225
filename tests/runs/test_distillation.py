"""A whole run of recipes/distil.yaml: a teacher alone, without a reward, makes the policy's advantages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs.verst_run import ROOT, VerstRun
from verst.runtime.dashboard.columns import flat
from verst.runtime.data.models import tiny_moe
from verst.runtime.metrics.glossary import find


@pytest.mark.long
@pytest.mark.timeout(500)
def test_a_teacher_alone_makes_the_advantages_of_each_step(model: Path, tmp_path: Path) -> None:
    teacher = tiny_moe(tmp_path / "teacher", seed=1)
    run = VerstRun(
        str(ROOT / "recipes/distil.yaml"),
        tmp_path / "student",
        (
            f"model.path={model}",
            f"data.train.path={model}/train.jsonl",
            f"data.eval.path={model}/eval.jsonl",
            f"algorithm.teacher.path={teacher}",
            f"algorithm.stages.0.data.path={model}/demonstrations.jsonl",
            "algorithm.stages.0.steps=1",
            "algorithm.steps=4",
            "algorithm.prompts_per_step=8",
        ),
    )
    run.finish(timeout=450)
    steps = run.lines("step")
    assert len(steps) == 4
    for line in steps:
        assert line["reward"] == 0.0
        # On the policy's own tokens the ratio is 1, so the loss is minus the mean advantage: log p - log q.
        assert line["kl_teacher"] == pytest.approx(line["loss"], rel=1e-4)
        assert line["grad_norm"] > 0
        assert line["logprob_max_diff"] <= 1e-4
        assert line["routing_wrong"] == 0
        assert "train/teacher_logprobs" in line["seconds"]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    keys = {(line["kind"], key) for line in lines for key, _ in flat(line)}
    assert [pair for pair in sorted(keys) if find(*pair) is None] == []
