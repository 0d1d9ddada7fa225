"""The reason of a failed run is its headline: in `verst status`, `verst top` and at the end of `verst run`."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.runtime.dashboard.run_folders import make_folder
from verst.launcher.local.commands import _explain
from verst.launcher.runs.ending import Ending, read_ending
from verst.launcher.watch import status
from verst.launcher.watch.top import Top
from verst.runtime.dashboard.run_state import StateReader
from verst.runtime.run.ending import HOPELESS, STOPPED, RunEnd, write_end
from verst.runtime.run.folder import RunFolder

REASON = (
    "prompt group 4: reward function 'm:f', sample 2 of group 4: raised KeyError: 'x' (/home/me/m.py:3, in f)"
)
RED, YELLOW, GREEN = "\x1b[1;31m", "\x1b[33m", "\x1b[32m"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_folder(tmp_path / "run")


def shown(folder: RunFolder, end: RunEnd) -> str:
    write_end(folder, end)
    console = Console(file=io.StringIO(), width=400, force_terminal=True, color_system="standard")
    status._print_state(folder, console, launched=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "colour"), [(HOPELESS, RED), (1, RED), (STOPPED, YELLOW)], ids=["hopeless", "failed", "stopped"]
)
def test_status_has_the_reason_in_its_colour(folder: RunFolder, code: int, colour: str) -> None:
    assert f"{folder.root}: {colour}{REASON}\x1b[0m, life 0" in shown(folder, RunEnd(code, REASON, 0))


def test_a_finished_run_is_green(folder: RunFolder) -> None:
    assert f"{GREEN}finished\x1b[0m" in shown(folder, RunEnd(0, "trained 4 steps", 0))


def test_top_shows_the_whole_reason_on_a_narrow_terminal(folder: RunFolder) -> None:
    write_end(folder, RunEnd(HOPELESS, REASON, 0))
    top = Top(folder)
    top.update()
    console = Console(file=io.StringIO(), width=60)
    console.print(top.frame(60))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert " ".join(said.split()).startswith(f"failed life 0 {REASON}") or REASON in " ".join(said.split())


def test_run_prints_it_when_it_ends(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    write_end(folder, RunEnd(HOPELESS, REASON, 0))
    ending = read_ending(folder, 0)
    assert isinstance(ending, Ending)
    _explain(folder, ending)
    assert f"the run ended early: {REASON}\n" in capsys.readouterr().err


def test_the_dashboard_gets_it_as_the_runs_state(folder: RunFolder) -> None:
    write_end(folder, RunEnd(HOPELESS, REASON, 0))
    assert StateReader(folder).read(alive=False) == ("failed", REASON)
