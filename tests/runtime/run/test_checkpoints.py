"""Checkpoint folders promise: half-written ones are never taken for good, and go at the next start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from verst.runtime.run.checkpoints import (
    FORMAT,
    MANIFEST,
    Manifest,
    being_evaluated,
    clean,
    complete,
    controller_state,
    latest,
    partial_path,
    prune,
    read_manifest,
    read_scores,
    version_of,
)


def manifest(version: int) -> Manifest:
    return Manifest(
        format=FORMAT,
        model="a",
        version=version,
        optimizer_steps=version,
        scheduler_steps=version,
        parallel={"tp": 2},
    )


def write(folder: Path, version: int, controller: bytes = b"c") -> Path:
    path = folder / f"step-{version:06d}"
    partial = partial_path(path, version)
    partial.mkdir()
    (partial / "tensors").write_bytes(b"t")
    complete(partial, path, manifest(version), controller)
    return path


def test_the_newest_complete_one_is_found_also_beyond_six_digits(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None
    for version in (999999, 5, 1000000):
        write(tmp_path, version)
    newest = latest(tmp_path)
    assert newest == tmp_path / "step-1000000"
    assert read_manifest(newest) == manifest(1000000)


def test_half_written_ones_are_ignored_and_removed(tmp_path: Path) -> None:
    whole = write(tmp_path, 1)
    partial = partial_path(tmp_path / "step-000002", 77)
    shutil.copytree(whole, partial)
    without_manifest = tmp_path / "step-000003"
    without_manifest.mkdir()
    assert latest(tmp_path) == whole
    with pytest.raises(ValueError, match=r"step-000003 is not a checkpoint: it has no checkpoint\.json"):
        read_manifest(without_manifest)
    assert clean(tmp_path) == [partial.name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_replacing_one_of_the_same_name_loses_neither_wherever_it_stops(tmp_path: Path) -> None:
    path = write(tmp_path, 1, b"old")
    write(tmp_path, 1, b"new")
    assert controller_state(path) == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    # As if it had stopped between the two renames:
    path.rename(tmp_path / ".step-000001.replaced")
    assert latest(tmp_path) is None
    assert clean(tmp_path) == []
    assert latest(tmp_path) == path
    assert controller_state(path) == b"new"


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for version in (3, 1, 2):
        write(tmp_path, version)
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_pruning_keeps_every_nth_and_the_best_by_evaluation(tmp_path: Path) -> None:
    for version in range(1, 13):
        write(tmp_path, version)
    scores = {2: 0.5, 3: 0.9, 7: 0.9, 8: 0.1, 20: 1.0}
    prune(tmp_path, 2, every=5, best=2, scores=scores)
    assert sorted(map(version_of, tmp_path.iterdir())) == [3, 5, 7, 10, 11, 12]
    prune(tmp_path, 1, best=1, scores=scores, evaluating=10)
    assert sorted(map(version_of, tmp_path.iterdir())) == [7, 10, 12], "10 may turn out to be the best"
    prune(tmp_path, 1, best=1, scores=scores)
    assert sorted(map(version_of, tmp_path.iterdir())) == [7, 12], "of equal scores the newer one"
    prune(tmp_path, 1, best=1)
    assert sorted(map(version_of, tmp_path.iterdir())) == [12]


def test_scores_are_by_weight_version_and_the_last_one_counts(tmp_path: Path) -> None:
    lines = [
        {"kind": "eval_progress", "step": 0, "done": 0, "of": 9},
        {"kind": "eval", "set": "math", "step": 0, "reward": 0.1, "pass@8": 0.7},
        {"kind": "step", "set": "math", "step": 4, "reward": 9.0},
        {"kind": "eval", "set": "math", "step": 5, "reward": 0.2, "pass@8": 0.6},
        {"kind": "eval", "set": "code", "step": 6, "reward": 0.2},
        {"kind": "eval_progress", "step": 5, "done": 0, "of": 9},
        {"kind": "eval_progress", "step": 5, "done": 4, "of": 9},
        {"kind": "eval", "set": "math", "step": 5, "reward": 0.3},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_scores(tmp_path / "metrics.jsonl", "math") == {0: 0.1, 5: 0.3}
    assert read_scores(tmp_path / "metrics.jsonl", "math", "pass@8") == {0: 0.7, 5: 0.6}
    assert read_scores(tmp_path / "gone.jsonl", "math") == {}
    assert being_evaluated(tmp_path / "metrics.jsonl") == 5
    assert being_evaluated(tmp_path / "gone.jsonl") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a checkpoint's manifest"),
        ('{"version": 1}', "is not a checkpoint's manifest.*missing required field"),
        (
            '{"format": 9, "model": "", "version": 1, "optimizer_steps": 1, "scheduler_steps": 1, "parallel": {}}',
            f"has checkpoint format 9; this version of Verst reads {FORMAT}",
        ),
    ],
)
def test_manifests_that_cannot_be_read_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, 1)
    (path / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(path)
