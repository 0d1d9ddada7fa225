"""Opens an existing run folder, and locks it against a second launcher."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.locks import lock

RUNS = Path("runs")  # where `runs_dir` puts run folders unless the recipe says otherwise


def open_run(run_dir: Path, or_app: bool = False) -> RunFolder:
    """Opens an existing run folder; with `or_app` also the folder of an app of actors. Raises UserError otherwise.

    A bare name that is no folder here stands for `runs/NAME`.
    """
    folder = RunFolder(named_run(run_dir))
    if is_app(folder) and not or_app:
        raise UserError(
            f"{folder.root} is the folder of an app of actors, not of a training run; "
            "`verst status` and `verst logs` show it"
        )
    if not folder.recipe.is_file():
        what = "is not a run folder (it has no recipe.yaml)" if folder.root.exists() else "does not exist"
        hint = "" if folder.root.exists() else _nearest_run(run_dir)
        raise UserError(f"{folder.root} {what}{hint or '; `verst run RECIPE` makes one'}")
    return folder


def named_run(run_dir: Path) -> Path:
    """The absolute path of a run. A bare name that is no folder here stands for `runs/NAME`."""
    by_name = len(run_dir.parts) == 1 and not run_dir.exists() and is_run(RUNS / run_dir)
    return (RUNS / run_dir if by_name else run_dir).absolute()


def is_run(root: Path) -> bool:
    """Whether `root` is the folder of a run or of an app of actors."""
    return (root / "recipe.yaml").is_file() or (root / "actors.json").is_file()


def run_folders(runs_dir: Path) -> list[Path]:
    """The folders of runs and apps in `runs_dir`, by name."""
    return sorted(root for root in runs_dir.glob("*") if is_run(root))


def _nearest_run(run_dir: Path) -> str:
    """A hint for a misspelt run: the nearest name in the folder where it would be; "" if there is none."""
    parent = RUNS if len(run_dir.parts) == 1 else run_dir.parent
    names = {root.name: root for root in run_folders(parent)}
    close = difflib.get_close_matches(run_dir.name, names, n=1, cutoff=0.6)
    return f". Did you mean {names[close[0]]}?" if close else ""


def is_app(folder: RunFolder) -> bool:
    """Whether the folder is that of an app of actors (`verst actors`)."""
    return (folder.root / "actors.json").is_file()


@contextmanager
def only_launcher(folder: RunFolder) -> Iterator[None]:
    """Locks the run, since two launchers on one folder would fence each other off. Raises UserError if it is locked.

    Where the file system has no locks, it says so and goes on.
    """
    with _locked(folder) as locked:
        if not locked:
            print(
                f"the file system of {folder.root} has no locks: Verst cannot see whether another launcher "
                "already runs there",
                file=sys.stderr,
            )
        yield


def is_launched(folder: RunFolder) -> bool:
    """Whether a launcher on this machine has the run locked; without locks, whether its last life has not ended."""
    try:
        with _locked(folder) as locked:
            return not locked and read_end(folder, folder.generation) is None
    except UserError:
        return True


@contextmanager
def _locked(folder: RunFolder) -> Iterator[bool]:
    """Holds the run's lock; False if there are no locks. Raises UserError if another launcher has it."""
    fd = os.open(folder.root / "launcher.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            locked = lock(fd)
        except BlockingIOError:
            raise UserError(
                f"{folder.root} is already running; `verst status {folder.root}` shows it"
            ) from None
        yield locked
    finally:
        os.close(fd)
