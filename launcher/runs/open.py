"""Opens an existing run folder, and holds it against a second launcher."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.runtime.run.folder import RunFolder


def open_run(run_dir: Path, or_app: bool = False) -> RunFolder:
    """An existing run folder (or, for what can be done with both, an app's). Raises UserError when it is none."""
    folder = RunFolder(run_dir)
    if is_app(folder) and not or_app:
        raise UserError(
            f"{folder.root} is an app of actors, which trains nothing; `verst status` and `verst logs` show it"
        )
    if not folder.recipe.is_file():
        what = "is not a run folder (it has no recipe.yaml)" if folder.root.exists() else "does not exist"
        raise UserError(f"{folder.root} {what}; `verst run RECIPE` makes one")
    return folder


def is_app(folder: RunFolder) -> bool:
    """Whether the folder is an app's (`verst actors`)."""
    return (folder.root / "actors.json").is_file()


@contextmanager
def only_launcher(folder: RunFolder) -> Iterator[None]:
    """Holds the run: two launchers on one folder would fence each other off. Raises UserError if it is held."""
    fd = os.open(folder.root / "launcher.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{folder.root} is running; `verst status {folder.root}` shows it") from None
    finally:
        os.close(fd)


def is_launched(folder: RunFolder) -> bool:
    """Whether a launcher on this machine holds the run."""
    try:
        with only_launcher(folder):
            return False
    except UserError:
        return True
