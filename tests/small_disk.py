"""A disk of its own that a test can fill, enlarge and make read-only: a tmpfs. Needs root and mount(8)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


class SmallDisk:
    """Mounted at `path` from `mount` to `unmount`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, kib: int) -> None:
        """Mounts it; skips the test where that is not allowed."""
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk needs root")
        self.path.mkdir()
        done = self._call("mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=700", "verst-test", str(self.path))
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def resize(self, kib: int) -> None:
        """Enlarges or shrinks it, with what is on it."""
        self._remount(f"size={kib}k")

    def read_only(self) -> None:
        """From now on nothing can be written, removed or renamed."""
        self._remount("ro")

    def fill(self) -> Path:
        """Takes all the space there is, and returns the file that holds it."""
        hog = self.path / "hog"
        with hog.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue
        return hog

    def unmount(self) -> None:
        """Lazily, so that it goes even if a process of a failed test is still on it."""
        self._call("umount", "--lazy", str(self.path))

    def _remount(self, option: str) -> None:
        done = self._call("mount", "-o", f"remount,{option}", str(self.path))
        assert done.returncode == 0, done.stderr

    @staticmethod
    def _call(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=30)
