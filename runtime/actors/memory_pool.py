"""Anonymous memory for large arrays in messages, used again and again: to get new pages costs ten times the copying.

A block can be written again once no receiver has it open or mapped. Nobody has to say so: the kernel knows it. It
grants a write lease on a file only when nobody else has it open, and what is mapped counts as open. So a receiver
that keeps an array for long, or forks, or dies, needs no protocol, and one that holds on to it never sees it change.
Where the kernel knows no leases, no block is ever used twice.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import threading
import time

NAME = "verst"  # as /proc shows it; not a name that anything is found under
FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
KEPT_S = 10.0  # unused
MOST_KEPT_BYTES = 512 << 20
_ROUND_BYTES = 1 << 20
_MOST_WASTE = 2  # a block is used for what is at least such a part of it


def new_memory(size: int) -> int:
    """The descriptor of memory of this size for ever."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED_SIZE)
    return fd


class Block:
    """Memory of this process that receivers map."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // _ROUND_BYTES) * _ROUND_BYTES
        self.fd = new_memory(self.size)
        self.inode = os.fstat(self.fd).st_ino
        self.given_back_at = 0.0  # monotonic
        self._mapped = mmap.mmap(self.fd, self.size)
        # A lease needs a file that was opened by a path. Should somebody open the memory while we have the lease, we
        # get a signal: one that is ignored, where the usual one would end the process.
        self._probe = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(self._probe, fcntl.F_SETSIG, signal.SIGURG)
        self.can_be_free = self.is_free()  # or the kernel knows no leases

    def write(self, data: memoryview) -> None:
        """Copies `data` to the beginning, without the interpreter's lock."""
        import numpy as np

        np.copyto(np.frombuffer(self._mapped, np.uint8, data.nbytes), np.frombuffer(data, np.uint8))

    def is_free(self) -> bool:
        """Whether no receiver has it."""
        try:
            fcntl.fcntl(self._probe, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        fcntl.fcntl(self._probe, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def close(self) -> None:
        """Lets go of it. Who has mapped it keeps it."""
        self._mapped.close()
        os.close(self._probe)
        os.close(self.fd)


class Pool:
    """Blocks whose messages were answered, those given back last at the end. For all threads."""

    def __init__(self) -> None:
        self._kept: list[Block] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Block:
        """A block of at least this size, to be given back or closed."""
        with self._lock:
            for block in reversed(self._kept):
                if size <= block.size <= max(_MOST_WASTE * size, _ROUND_BYTES) and block.is_free():
                    self._kept.remove(block)
                    return block
        return Block(size)

    def give_back(self, block: Block) -> None:
        """Its message was answered; perhaps its receiver still reads it."""
        if not block.can_be_free:
            block.close()
            return
        block.given_back_at = time.monotonic()
        with self._lock:
            self._kept.append(block)
        self.tidy(KEPT_S)

    def tidy(self, kept_s: float) -> None:
        """Closes what has not been used for so long, or is too much."""
        if not self._kept:
            return
        with self._lock:
            too_old = time.monotonic() - kept_s
            while self._kept and (
                self._kept[0].given_back_at <= too_old
                or sum(block.size for block in self._kept) > MOST_KEPT_BYTES
            ):
                self._kept.pop(0).close()


POOL = Pool()
