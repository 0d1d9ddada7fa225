"""Leases: a file for each reader of a version, valid until the time in it, so that nobody removes the version."""

from __future__ import annotations

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from verst.sync.files.durable import naming, write_whole

# The clocks of nodes differ, so a lease counts for this much longer than its holder believes.
CLOCK_SLACK_S = 60.0
_MARK = "removing"


class Lease:
    """A reader's claim on a version's folder, until `release` or until its time is over."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Takes the lease for `seconds`. Raises FileNotFoundError if the folder is gone or being removed."""
        self._path = folder / "leases" / f"{uuid.uuid4().hex}.json"
        # Not mkdir(exist_ok=True): it raises FileExistsError if the folder exists and is removed before it looks again.
        with suppress(FileExistsError):
            self._path.parent.mkdir()
        self.renew(seconds)
        # Checked only after the lease is written, and the mark before the index: see `removal.py`.
        if (folder / _MARK).exists() or not (folder / "index.json").exists():
            self.release()
            raise FileNotFoundError(f"{folder} is being removed")

    def renew(self, seconds: float) -> None:
        """Makes the lease valid for `seconds` from now."""
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
        """Gives the lease up. Further calls do nothing."""
        self._path.unlink(missing_ok=True)


def mark(folder: Path) -> None:
    """Marks the folder as about to be removed. Called before the remover looks for leases."""
    (folder / _MARK).touch()


def drop_mark(folder: Path) -> None:
    """Removes the mark, if there is one."""
    (folder / _MARK).unlink(missing_ok=True)


def leased(folder: Path) -> bool:
    """Whether anybody may be reading the folder. A lease that cannot be parsed counts for a day."""
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
