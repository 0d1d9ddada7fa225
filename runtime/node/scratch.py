"""Private folders in $TMPDIR which do not outlive their processes for long, however these end.

A process that is killed cleans nothing up, but its locks go with it: who makes the next such folder on the machine
removes those that nobody has locked.
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

_NEW_S = 60.0  # one that is younger may be about to be locked


class Scratch:
    """A folder of this process."""

    def __init__(self, prefix: str) -> None:
        """Makes it, and removes abandoned ones of this user whose names begin with `prefix`. Raises OSError."""
        _remove_abandoned(Path(tempfile.gettempdir()), prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def remove(self) -> None:
        """With all that is in it. Harmless twice; done at the latest when the process ends by itself."""
        self._remove()


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # somebody's who removes it now, or has it
            about = path.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_ctime < _NEW_S:
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
