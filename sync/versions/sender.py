"""Publishes one weight version after another in a folder, whole or as what changed since the last.

Each of one or many writers has the same tensors in every version, and gives them bucket by bucket. With deltas it keeps
those of the last version in host memory, since a delta is told against them.
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

# On a network's file system what another node has written shows after a while.
_SHOWS_AFTER_S = 60.0


class VersionSender:
    """One writer: `begin`, `add` bucket by bucket, `seal`. When all have sealed, one of them calls `publish`."""

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
        """Every `full_every`th version is whole, the others are deltas against the one before.

        `keep` newest versions stay, `format` and `companions` as for `disk.publish`; `threads` compare tensors,
        by default four of the CPUs that this process may use. This is number `writer` of `writers`.
        """
        self.root = root
        self._keep, self._full_every = keep, full_every
        self._format, self._companions = dict(format or {}), companions
        self._threads = threads or min(4, len(os.sched_getaffinity(0)))
        self._names = [f"trainer-{i}" for i in range(writers)]
        self._name = self._names[writer]
        self._last: dict[str, torch.Tensor] = {}
        self._last_version: int | None = None
        self._since_full = 0  # versions since a whole one; who publishes knows
        self._writer: VersionWriter | None = None

    def next_base(self) -> int | None:
        """The version that the next one is to be told against, None: it is to be whole. Asked of who publishes."""
        # What engines are to start from may be gone: somebody emptied the folder.
        whole = self._last_version not in versions(self.root) or self._since_full + 1 >= self._full_every
        return None if whole else self._last_version

    def begin(self, version: int, base: int | None) -> None:
        """`base` is what one writer's `next_base` has said. Raises FileExistsError for a published version."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._writer = VersionWriter(self.root, version, self._name, base)

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

    def seal(self, version: int) -> int:
        """This writer has given all: makes it durable; the bytes written."""
        assert self._writer is not None
        written = self._writer.finish()
        self._writer = None
        self._last_version = version
        return written

    def publish(self, version: int) -> None:
        """Makes the version exist, when all writers have sealed it, and removes versions that are too old."""
        index = publish(self.root, version, self._names, self._format, self._companions, _SHOWS_AFTER_S)
        self._since_full = 0 if index.base is None else self._since_full + 1
        keep_newest(self.root, self._keep)

    def send(self, version: int, buckets: Iterable[tuple[Sequence[str], Sequence[torch.Tensor]]]) -> int:
        """A whole version, of a writer that is the only one; the bytes written."""
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
