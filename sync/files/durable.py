"""Making files durable: what a crash of the machine must not take back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's entries, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(fd: int, data: bytes | memoryview) -> None:
    """Writes all of it: a disk that becomes full, or a limit, takes a part and refuses the rest at the next try."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the path into errors of calls that know only a descriptor ("No space left on device: …")."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
