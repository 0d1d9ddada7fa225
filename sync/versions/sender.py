"""Publishes one weight version after another in a folder, whole or as the changes since the last version.

There are one or more writers. Each has the same tensors in every version and adds them bucket by bucket. With deltas a
writer keeps its tensors of the last version in host memory, to compare the next version with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from verst.sync.versions.folder import versions
from verst.sync.versions.removal import keep_newest
from verst.sync.versions.writer import VersionWriter, publish

# On a network file system, a file that another node has written may become visible only after a while.
_SHOWS_AFTER_S = 60.0


class VersionSender:
    """One writer. For each version call `begin`, `add` bucket by bucket, `seal`.

    When all writers have sealed a version, one of them calls `publish`.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: int,
        full_every: int = 1,
        format: Mapping[str, Any] | None = None,
        companions: Path | None = None,
        threads: int | None = None,
        writer: int = 0,
        writers: int = 1,
    ) -> None:
        """Every `full_every`th version is whole, the others are deltas from the version before.

        The newest `keep` versions are kept. `format` and `companions` are as in `writer.publish`. `threads` is the
        number of threads that compare tensors: by default up to four, as many as this process has CPUs. This is writer
        number `writer` of `writers`.
        """
        self.root = root
        self._keep, self._full_every = keep, full_every
        self._format, self._companions = dict(format or {}), companions
        self._threads = threads or min(4, len(os.sched_getaffinity(0)))
        self._names = [f"trainer-{i}" for i in range(writers)]
        self._name = self._names[writer]
        self._last: dict[str, torch.Tensor] = {}
        self._last_version: int | None = None
        self._since_full = 0  # versions since a whole one; counted only by the writer that publishes
        self._writer: VersionWriter | None = None

    def next_base(self) -> int | None:
        """The base for the next version's deltas; None: it must be whole. Only the writer that publishes knows this."""
        # The base may be gone, for instance if somebody emptied the folder. Engines then need a whole version.
        whole = self._last_version not in versions(self.root) or self._since_full + 1 >= self._full_every
        return None if whole else self._last_version

    def begin(self, version: int, base: int | None) -> None:
        """Starts a version. `base` is the `next_base` of the writer that publishes.

        Raises FileExistsError if the version is published already.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._writer = VersionWriter(self.root, version, self._name, base)

    def add(self, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
        """Adds the next tensors of the version."""
        assert self._writer is not None
        here = {name: tensor.detach().cpu() for name, tensor in zip(names, tensors, strict=True)}
        if self._writer.base is None:
            for name, tensor in here.items():
                self._writer.add(name, tensor)
        else:
            with ThreadPoolExecutor(self._threads, "deltas") as pool:
                self._writer.add_changed({name: (self._last[name], t) for name, t in here.items()}, pool.map)
        if self._full_every > 1:
            self._keep_for_next(here)

    def seal(self, version: int) -> int:
        """Makes this writer's tensors durable, after the last `add`. Returns the number of bytes written."""
        assert self._writer is not None
        written = self._writer.finish()
        self._writer = None
        self._last_version = version
        return written

    def publish(self, version: int) -> None:
        """Publishes the version, which all writers have sealed, and removes versions that are too old."""
        index = publish(self.root, version, self._names, self._format, self._companions, _SHOWS_AFTER_S)
        self._since_full = 0 if index.base is None else self._since_full + 1
        keep_newest(self.root, self._keep)

    def send(self, version: int, buckets: Iterable[tuple[Sequence[str], Sequence[torch.Tensor]]]) -> int:
        """Writes and publishes a whole version, for a single writer. Returns the number of bytes written."""
        self.begin(version, self.next_base())
        for names, tensors in buckets:
            self.add(names, tensors)
        written = self.seal(version)
        self.publish(version)
        return written

    def _keep_for_next(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name in self._last:
                self._last[name].copy_(tensor)
            else:
                self._last[name] = tensor.clone(memory_format=torch.contiguous_format)
