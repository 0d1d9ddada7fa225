"""The table of a sample's log-probabilities has each policy's, and marks where engine and trainer differ most."""

from __future__ import annotations

import json

import pytest

from tests.runtime.dashboard.run_folders import keep_samples, sample
from verst.launcher.recipe.faults import UserError
from verst.launcher.watch.logprobs import print_logprobs, rows
from verst.runtime.dashboard.shown import ShownWhole
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    made.recipe.write_text("name: run\n")
    more = {"old_logprobs": [-0.1, -0.2, -1.5], "reference_logprobs": [-0.3, -0.4, -0.5]}
    keep_samples(made, 2, sample(2, 0), sample(2, 1, **more))
    keep_samples(made, 3, sample(3, 0))
    return made


def test_a_sample_is_found_in_the_last_step_that_has_it(folder, capsys):
    assert print_logprobs(folder.root, "3/1", None, 1, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["group"], told["index"]) == (2, 3, 1)
    assert [row["engine"] for row in told["tokens"]] == [-0.1, -0.2, -1.5]
    assert [row["old"] for row in told["tokens"]] == [-0.1, -0.2, -1.5]
    assert [row["new"] for row in told["tokens"]] == [-0.1, -0.25, -1.0]
    assert [row["reference"] for row in told["tokens"]] == [-0.3, -0.4, -0.5]
    assert [row["difference"] for row in told["tokens"]] == pytest.approx([0.0, -0.05, 0.5])
    assert [row["marked"] for row in told["tokens"]] == [False, False, True]
    assert print_logprobs(folder.root, "3/0", None, 1, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3


def test_the_table_has_a_column_for_each_policy_that_there_is(folder, capsys):
    print_logprobs(folder.root, "3/1", 2, 2, as_json=False)
    out = capsys.readouterr().out
    head = out.splitlines()[1].split()
    assert head == ["token", "engine", "old", "new", "reference", "difference"]
    assert [line.endswith("<") for line in map(str.rstrip, out.splitlines()[2:5])] == [False, True, True]
    print_logprobs(folder.root, "3/0", 3, 2, as_json=False)
    assert capsys.readouterr().out.splitlines()[1].split() == ["token", "engine", "new", "difference"]


def test_a_token_that_is_not_trained_on_is_not_compared():
    made = ShownWhole(
        tokens=["a", "tool", "b"], rollout_logprobs=[-1.0, 0.0, -2.0], trainer_logprobs=[-1.5, 0.0, -2.0]
    )
    found = rows(made, marked=5)
    assert [row["new"] for row in found] == [-1.5, None, -2.0]
    assert [row["difference"] for row in found] == [-0.5, None, 0.0]
    assert [row["marked"] for row in found] == [True, False, False]


def test_what_was_not_kept_is_told(folder):
    with pytest.raises(UserError, match="kept no sample 9/0 of any step"):
        print_logprobs(folder.root, "9/0", None, 5, as_json=False)
    with pytest.raises(UserError, match="kept no sample 3/1 of step 3"):
        print_logprobs(folder.root, "3/1", 3, 5, as_json=False)
    with pytest.raises(UserError, match="no samples were kept of step 4; kept are 2 to 3"):
        print_logprobs(folder.root, None, 4, 5, as_json=False)
    with pytest.raises(UserError, match="must be GROUP/INDEX"):
        print_logprobs(folder.root, "9", None, 5, as_json=False)
