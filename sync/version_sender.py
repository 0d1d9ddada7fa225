"""Publishes one weight version after another in a folder, whole or as what changed since the last.

Used by the one process that has whole tensors, bucket by bucket. With deltas it keeps the last version's tensors
in host memory, one copy of what engines load, since a delta is told against them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from verst.sync.disk import versions
from verst.sync.disk_removal import keep_newest
from verst.sync.disk_writer import VersionWriter, publish

WRITER = "trainer"


class VersionSender:
    """`begin`, `add` bucket by bucket, `finish`: a version exists."""

    def __init__(
        self,
        root: Path,
        *,
        keep: int,
        full_every: int = 1,
        format: Mapping[str, Any] | None = None,
        companions: Path | None = None,
        threads: int | None = None,
    ) -> None:
        """Every `full_every`th version is whole, the others are deltas against the one before.

        `keep` newest versions stay, `format` and `companions` as for `disk.publish`; `threads` compare tensors,
        by default four of the CPUs that this process may use.
        """
        self.root = root
        self._keep, self._full_every = keep, full_every
        self._format, self._companions = dict(format or {}), companions
        self._threads = threads or min(4, len(os.sched_getaffinity(0)))
        self._last: dict[str, torch.Tensor] = {}
        self._last_version: int | None = None
        self._since_full = 0  # versions published since a whole one
        self._writer: VersionWriter | None = None

    def begin(self, version: int) -> None:
        """Raises FileExistsError for a version that is published already."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What engines are to start from may be gone: somebody emptied the folder.
        whole = self._last_version not in versions(self.root) or self._since_full + 1 >= self._full_every
        self._writer = VersionWriter(self.root, version, WRITER, None if whole else self._last_version)

    def add(self, names: Sequence[str], tensors: Sequence[torch.Tensor]) -> None:
        """The next tensors of the version."""
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

    def finish(self, version: int) -> int:
        """Publishes, and removes versions that are too old; the bytes written."""
        assert self._writer is not None
        written = self._writer.finish()
        index = publish(self.root, version, [WRITER], self._format, self._companions)
        self._writer = None
        self._last_version = version
        self._since_full = 0 if index.base is None else self._since_full + 1
        keep_newest(self.root, self._keep)
        return written

    def _keep_for_next(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name in self._last:
                self._last[name].copy_(tensor)
            else:
                self._last[name] = tensor.clone(memory_format=torch.contiguous_format)
