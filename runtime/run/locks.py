"""Locks on files and folders, and what a file system does that has none (Lustre without `flock`, NFS without lockd)."""

from __future__ import annotations

import errno
import fcntl

_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def lock(fd: int) -> bool:
    """Locks an open file or folder until `fd` is closed. Returns False where the file system has no locks.

    Raises BlockingIOError if another process holds the lock, and another OSError if locking fails.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
