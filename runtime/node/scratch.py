"""Private temporary folders in $TMPDIR that are removed even if their process is killed.

A killed process cleans nothing up, but its locks go with it. The next process that makes such a folder on the
machine removes the folders that nobody has locked. Where the file system has no locks, nobody removes them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path

from verst.runtime.run.locks import lock

_NEW_S = 60.0  # a younger folder may be about to be locked
_UNLOCKED = (
    ".not-locked"  # a file in a folder that could not be locked, so that nobody takes it for abandoned
)
_RANDOM = 8  # characters that mkdtemp adds to a prefix
# A socket's path has at most 107 characters. The longest name inside is multiprocessing's:
# /pymp-xxxxxxxx/listener-xxxxxxxx
_LONGEST = 107 - 32


class Scratch:
    """A temporary folder of this process, at `path`."""

    def __init__(self, prefix: str, *, sockets: bool = False) -> None:
        """Makes the folder. Removes abandoned folders of this user whose names begin with `prefix`.

        With `sockets`, its path is short enough for Unix sockets in it, if need be elsewhere than in $TMPDIR. Raises
        OSError if the folder cannot be made.
        """
        place = _place_for_sockets(prefix) if sockets else tempfile.gettempdir()
        _remove_abandoned(Path(place), prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        if not lock(fd):
            (self.path / _UNLOCKED).touch()
        self._remove = weakref.finalize(self, _remove, self.path, fd)

    def remove(self) -> None:
        """Removes the folder and its content. Harmless twice; runs at the latest when the process exits."""
        self._remove()


def _place_for_sockets(prefix: str) -> str:
    """The first folder for temporary files in which the paths of sockets are short enough."""
    wanted = tempfile.gettempdir()
    for place in (wanted, "/tmp", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")):
        path = os.path.join(place, prefix + "x" * _RANDOM)
        if place and len(os.fsencode(path)) <= _LONGEST and os.access(place, os.W_OK | os.X_OK):
            return place
    most = _LONGEST - len(prefix) - _RANDOM - 1
    raise OSError(
        errno.ENAMETOOLONG,
        f"{wanted} is too long for the paths of sockets, and neither /tmp nor /dev/shm can be written: "
        f"set TMPDIR to a folder of at most {most} characters",
    )


def _remove(path: Path, fd: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(fd)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # in use, or being removed by another process
            about = path.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_ctime < _NEW_S:
                continue
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if lock(fd) and not (path / _UNLOCKED).exists():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(fd)
