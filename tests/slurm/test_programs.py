"""Slurm's commands: every failure to run one is a SlurmError, and a slurmctld that is away is asked again."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.stand_in import StandIn
from verst.slurm import SlurmError, job_states
from verst.slurm.job_states import accounting_works
from verst.slurm.programs import CommandMissing, NoAnswer, Patience, call, requeue


def test_a_command_that_cannot_be_run_is_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "squeue").write_text("of another machine's kind")
    (tmp_path / "squeue").chmod(0o700)
    with pytest.raises(CommandMissing, match="squeue cannot be run on this machine: Exec format error"):
        call(["squeue"])
    (tmp_path / "squeue").chmod(0o600)
    with pytest.raises(CommandMissing, match="squeue cannot be run on this machine: Permission denied"):
        call(["squeue"])
    with pytest.raises(CommandMissing, match="there is no scontrol on this machine"):
        call(["scontrol"])


def test_a_machine_without_resources_is_asked_again(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(NoAnswer, match="squeue: cannot be started now: Resource temporarily unavailable"):
        call(["squeue"])
    assert stand_in.pauses == [5.0, 10.0]


@pytest.mark.parametrize("mode", [0o600, 0o700])
def test_an_accounting_that_cannot_be_asked_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # the machine's own sacct would be found else
    for name, text, its_mode in (("squeue", "#!/bin/sh\n", 0o700), ("sacct", "not for this machine", mode)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(its_mode)
    assert not accounting_works()
    assert [state.state for state in job_states(["7"])["7"]] == ["GONE"]


def test_what_is_no_text_is_told_all_the_same(stand_in: StandIn) -> None:
    stand_in.command("squeue", "printf 'caf\\351' >&2; exit 1\n")
    with pytest.raises(SlurmError, match="squeue: caf"):
        call(["squeue"])


def test_the_pauses_grow_up_to_a_minute() -> None:
    assert list(Patience(15).pauses()) == [5, 10]
    assert list(Patience(200).pauses()) == [5, 10, 20, 40, 60, 60, 5]


def test_a_requeue_goes_on_asking_while_slurm_is_away(stand_in: StandIn) -> None:
    """`scontrol requeue` has words of its own for a slurmctld that is not there."""
    away = 'echo "Unexpected message received for job $2" >&2; exit 1'
    stand_in.command("scontrol", f"[ $(grep -c scontrol calls) -ge 9 ] || {{ {away}; }}\n")
    with pytest.raises(NoAnswer):
        requeue("7_0")
    assert len(stand_in.calls("scontrol")) == 3
    said: list[str] = []
    requeue("7_0", Patience(24 * 3600, said.append))
    assert len(stand_in.calls("scontrol")) == 9
    assert len(said) == 5
    assert "Unexpected message received for job" in said[0]
