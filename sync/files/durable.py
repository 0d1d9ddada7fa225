"""Writes files durably, so that they survive a crash of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of entries, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(fd: int, data: bytes | memoryview) -> None:
    """Writes all of `data`. Raises OSError if that is not possible.

    A single `os.write` may write only a part, for instance when the disk becomes full; the next one then fails.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path to OSErrors of calls that know only a file descriptor ("No space left on device: …")."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
