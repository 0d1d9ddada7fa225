"""Reuses the memory of large arrays in messages, since new pages cost ten times as much as the copying.

A block can be written again once no receiver has it open or mapped. No receiver has to report that, since the
kernel knows it: it grants a write lease on a file only if nobody else has the file open, and mapped counts as
open. So it does not matter if a receiver keeps an array for long, forks or dies, and an array never changes
while a receiver holds it. Where the kernel does not support leases, no block is used twice.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import threading
import time

NAME = "verst"  # only for display in /proc; the memory cannot be found by it
FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
KEPT_S = 10.0  # how long an unused block is kept
MOST_KEPT_BYTES = 512 << 20
_ROUND_BYTES = 1 << 20
_MOST_WASTE = 2  # a block may be this many times as large as its data


def new_memory(size: int) -> int:
    """Makes anonymous memory whose size can never change. Returns its descriptor."""
    fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, FIXED_SIZE)
    return fd


class Block:
    """Memory of this process that receivers can map."""

    def __init__(self, size: int) -> None:
        self.size = -(-size // _ROUND_BYTES) * _ROUND_BYTES
        self.fd = new_memory(self.size)
        self.inode = os.fstat(self.fd).st_ino
        self.given_back_at = 0.0  # monotonic
        self._mapped = mmap.mmap(self.fd, self.size)
        # A lease needs a file that was opened by a path. If somebody opens the memory while we have the
        # lease, we get a signal. The default one (SIGIO) would end the process; SIGURG is ignored.
        self._probe = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        fcntl.fcntl(self._probe, fcntl.F_SETSIG, signal.SIGURG)
        self.can_be_free = self.is_free()  # False where the kernel does not support leases

    def write(self, data: memoryview) -> None:
        """Copies `data` to the beginning of the block, without holding the GIL."""
        import numpy as np

        np.copyto(np.frombuffer(self._mapped, np.uint8, data.nbytes), np.frombuffer(data, np.uint8))

    def is_free(self) -> bool:
        """Whether no receiver has the block open or mapped."""
        try:
            fcntl.fcntl(self._probe, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        fcntl.fcntl(self._probe, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def close(self) -> None:
        """Lets go of the block. Receivers that have mapped it keep it."""
        self._mapped.close()
        os.close(self._probe)
        os.close(self.fd)


class Pool:
    """Blocks whose messages were answered, those given back last at the end. Thread-safe."""

    def __init__(self) -> None:
        self._kept: list[Block] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Block:
        """Gives a block of at least `size` bytes. Give it back or close it."""
        with self._lock:
            for block in reversed(self._kept):
                if size <= block.size <= max(_MOST_WASTE * size, _ROUND_BYTES) and block.is_free():
                    self._kept.remove(block)
                    return block
        return Block(size)

    def give_back(self, block: Block) -> None:
        """Takes back a block whose message was answered. Its receiver may still be reading it."""
        if not block.can_be_free:
            block.close()
            return
        block.given_back_at = time.monotonic()
        with self._lock:
            self._kept.append(block)
        self.tidy(KEPT_S)

    def tidy(self, kept_s: float) -> None:
        """Closes blocks unused for `kept_s` seconds, and the oldest if more than MOST_KEPT_BYTES are kept."""
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
