"""A script is submitted once, whatever becomes of sbatch's answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.stand_in import StandIn
from verst.slurm import SlurmError
from verst.slurm.programs import NoAnswer
from verst.slurm.submission import TOKEN, submit


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.sh"
    path.write_text("#!/bin/bash\n#SBATCH --comment='two words'\nsrun true\n")
    return path


def test_a_job_whose_answer_was_lost_is_found_and_not_submitted_again(
    stand_in: StandIn, script: Path
) -> None:
    stand_in.plan("answer-lost")
    assert submit(script) == "11"
    assert len(stand_in.calls("sbatch")) == 1
    assert stand_in.queue == ["11"]


def test_what_did_not_reach_slurm_is_submitted_again(stand_in: StandIn, script: Path) -> None:
    stand_in.plan("not-reached")
    assert submit(script, "--array=2") == "12"
    assert stand_in.queue == ["12"]
    first, second = stand_in.calls("sbatch")
    assert first == second  # the same token
    assert "--array=2" in first


def test_a_job_that_shows_up_after_the_second_call_is_cancelled(stand_in: StandIn, script: Path) -> None:
    stand_in.plan("obeyed-later")
    assert submit(script) == "12"
    assert stand_in.queue == ["12"]


def test_sbatch_is_not_called_again_before_squeue_has_answered(stand_in: StandIn, script: Path) -> None:
    stand_in.plan("answer-lost")
    stand_in.squeue_is_away(2)
    assert submit(script) == "11"
    assert len(stand_in.calls("sbatch")) == 1


def test_when_nothing_helps_the_unknown_job_is_named(stand_in: StandIn, script: Path) -> None:
    stand_in.plan(*["not-reached"] * 9)
    with pytest.raises(
        NoAnswer, match=r"whether a job was submitted is not known.* the comment verst-[0-9a-f]{12}"
    ):
        submit(script)
    assert len(stand_in.calls("sbatch")) == 3


def test_the_last_of_several_lost_answers_is_looked_for_too(stand_in: StandIn, script: Path) -> None:
    stand_in.plan("not-reached", "not-reached", "answer-lost")
    assert submit(script) == "13"
    assert stand_in.queue == ["13"]


def test_a_refusal_is_told_at_once(stand_in: StandIn, script: Path) -> None:
    stand_in.plan("refused")
    with pytest.raises(SlurmError, match="Invalid account"):
        submit(script)
    assert len(stand_in.calls("sbatch")) == 1


def test_the_job_knows_its_token_and_keeps_the_recipes_comment(stand_in: StandIn, script: Path) -> None:
    assert submit(script, token="verst-1") == "11"
    assert stand_in.environment[TOKEN] == "verst-1"
    assert "--comment=two words verst-1" in stand_in.calls("sbatch")[0]


@pytest.mark.parametrize("mode", ["wrapped", "no-id"])
def test_a_sites_wrapper_may_print_more_than_the_id(stand_in: StandIn, script: Path, mode: str) -> None:
    stand_in.plan(mode)
    assert submit(script) == "11"
    assert len(stand_in.calls("sbatch")) == 1
