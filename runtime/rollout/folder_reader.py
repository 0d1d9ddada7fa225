"""A rollout worker's reading of weight versions from a folder, before its engine pauses for them.

Without a copy all of it is read and verified: an engine is not paused for a version that is damaged, and what its
ranks then read is in the node's memory as a rule. With a copy (`sync/versions/local_copy.py`) it reads changes only.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verst.runtime.messages.weight_round import FolderVersion
from verst.sync.versions.local_copy import LocalCopy, default_place
from verst.sync.versions.reader import VersionReader, open_version


class FolderReader:
    """Of one engine."""

    def __init__(self) -> None:
        self._copy: LocalCopy | None = None
        self._threads = min(4, len(os.sched_getaffinity(0)))

    @property
    def copy(self) -> str | None:
        """The file that holds what was fetched last; None: the folder itself does."""
        return None if self._copy is None else self._copy.path

    def fetch(self, version: FolderVersion) -> int:
        """Reads and verifies a version; returns the bytes read.

        Raises ValueError for one that is damaged or gone, OSError when it cannot be read or there is no room for a
        copy, TimeoutError.
        """
        if version.copy_in is None:
            self.close()
            with open_version(Path(version.root), version.version, version.timeout_s) as reader:
                return self._verify(reader, time.monotonic() + version.timeout_s)
        if self._copy is None:
            self._copy = LocalCopy(Path(version.copy_in or default_place()), self._threads)
        return self._copy.follow(Path(version.root), version.version, version.timeout_s)

    def close(self) -> None:
        """Gives the copy's room back."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _verify(self, reader: VersionReader, deadline: float) -> int:
        def read(name: str) -> int:
            if time.monotonic() > deadline:
                raise TimeoutError(f"version {reader.version} was not read from {reader.folder} in time")
            return reader.tensor(name).nbytes

        with ThreadPoolExecutor(self._threads, "weights") as pool:
            return sum(pool.map(read, reader.index.tensors))
