"""Reads a weight version from a folder in the rollout worker, before its engine pauses for it.

Without a local copy, the whole version is read and verified. So an engine never pauses for a damaged version, and the
files are usually in the node's page cache when the engine's ranks read them. With a local copy
(`sync/versions/local_copy.py`), only the changes are read.
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
    """Reads the versions for one engine."""

    def __init__(self) -> None:
        self._copy: LocalCopy | None = None
        self._threads = min(4, len(os.sched_getaffinity(0)))

    @property
    def copy(self) -> str | None:
        """The file that holds the last fetched version; None: it is only in the folder."""
        return None if self._copy is None else self._copy.path

    def fetch(self, version: FolderVersion) -> int:
        """Reads and verifies a version; returns the number of bytes read.

        Raises ValueError if the version is damaged or gone, OSError if it cannot be read or there is no room for a
        copy, TimeoutError after the version's `timeout_s`.
        """
        if version.copy_in is None:
            self.close()
            with open_version(Path(version.root), version.version, version.timeout_s) as reader:
                return self._verify(reader, time.monotonic() + version.timeout_s)
        if self._copy is None:
            self._copy = LocalCopy(Path(version.copy_in or default_place()), self._threads)
        return self._copy.follow(Path(version.root), version.version, version.timeout_s)

    def close(self) -> None:
        """Frees the copy's space."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _verify(self, reader: VersionReader, deadline: float) -> int:
        def read(name: str) -> int:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"version {reader.version} was not read from {reader.folder} by the deadline"
                )
            return reader.tensor(name).nbytes

        with ThreadPoolExecutor(self._threads, "weights") as pool:
            return sum(pool.map(read, reader.index.tensors))
