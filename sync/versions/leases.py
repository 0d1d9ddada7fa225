"""Who is reading a version, so that nobody removes it: a file per reader, good until a time that it says."""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from verst.sync.files.durable import naming, write_whole

# Clocks of nodes differ: a lease counts this much longer than its holder believes.
CLOCK_SLACK_S = 60.0
_MARK = "removing"


class Lease:
    """A reader's claim on a folder, until `release` or until its time is over."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Raises FileNotFoundError when the folder is gone or being removed."""
        self._path = folder / "leases" / f"{uuid.uuid4().hex}.json"
        # mkdir's exist_ok looks again, and complains when the folder has gone in between.
        with suppress(FileExistsError):
            self._path.parent.mkdir()
        self.renew(seconds)
        # Only now, with the lease in place, and in the order in which these come and go: see `disk_removal`.
        if (folder / _MARK).exists() or not (folder / "index.json").exists():
            self.release()
            raise FileNotFoundError(f"{folder} is being removed")

    def renew(self, seconds: float) -> None:
        """From now on for this long."""
        content = {"until": time.time() + seconds, "host": os.uname().nodename, "pid": os.getpid()}
        partial = self._path.with_suffix(".partial")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with naming(partial):
                write_whole(fd, json.dumps(content).encode())
        finally:
            os.close(fd)
        os.rename(partial, self._path)

    def release(self) -> None:
        """Gives the claim up; again does nothing."""
        self._path.unlink(missing_ok=True)


def mark(folder: Path) -> None:
    """Says that the folder is about to be removed: before looking for leases."""
    (folder / _MARK).touch()


def drop_mark(folder: Path) -> None:
    """Says that it is not; again does nothing."""
    (folder / _MARK).unlink(missing_ok=True)


def leased(folder: Path) -> bool:
    """Whether anybody may be reading. A lease that cannot be understood counts for a day."""
    now = time.time()
    return any(_holds(path, now) for path in (folder / "leases").glob("*.json"))


def _holds(path: Path, now: float) -> bool:
    try:
        until = json.loads(path.read_text())["until"]
        return bool(until + CLOCK_SLACK_S > now)
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return path.stat().st_mtime + 86400 > now
