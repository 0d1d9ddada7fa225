"""Private temporary folders in $TMPDIR that are removed even if their process is killed.

A killed process cleans nothing up, but its locks go with it. The next process that makes such a folder on the
machine removes the folders that nobody has locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path

_NEW_S = 60.0  # a younger folder may be about to be locked


class Scratch:
    """A temporary folder of this process, at `path`."""

    def __init__(self, prefix: str) -> None:
        """Makes the folder. Removes abandoned folders of this user whose names begin with `prefix`.

        Raises OSError if the folder cannot be made.
        """
        _remove_abandoned(Path(tempfile.gettempdir()), prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """Removes the folder and its content. Harmless twice; runs at the latest when the process exits."""
        self._remove()


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # in use, or being removed by another process
            about = path.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_ctime < _NEW_S:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
