"""Writes a weight version to a folder: many writers write at once, and one publishes it when all have finished.

Each writer makes its files durable and lists them in its part (`VersionWriter.finish`). When all have finished, one of
them calls `publish`, which renames the index into place. A version without deltas that is published with `companions`
is a Hugging Face folder, which an engine loads as it is (`/update_weights_from_disk`).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from verst.sync.files.durable import flush, naming, write_whole
from verst.sync.files.shard_file import DTYPES, ShardFile
from verst.sync.formats import Derived
from verst.sync.hf.folder import INDEX as HF_INDEX
from verst.sync.hf.folder import copy_companions
from verst.sync.versions.delta import Delta, encode
from verst.sync.versions.folder import (
    INDEX,
    Entry,
    Index,
    folder_of,
    seal,
    unseal,
    versions,
    write_atomically,
)

_WRITER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _Part(msgspec.Struct, frozen=True):
    base: int | None
    tensors: dict[str, Entry]


def _encode(pair: tuple[torch.Tensor, torch.Tensor]) -> Delta:
    return encode(*pair)


class VersionWriter:
    """Writes one writer's tensors of a version. Not to be shared between threads.

    Holds up to `shard_bytes` of tensors on the CPU before it writes a file. Files of this writer from an earlier,
    unpublished attempt are removed.
    """

    def __init__(
        self, root: Path, version: int, writer: str, base: int | None = None, shard_bytes: int = 1 << 30
    ):
        """`base` is the version of the old tensors that are passed to `add`.

        Raises FileExistsError if the version is published already, ValueError if `base` is not published or `writer` is
        not a valid name.
        """
        if not _WRITER.fullmatch(writer):
            raise ValueError(f"writer {writer!r} is not a name of at most 64 letters, digits, _ and -")
        if base is not None and base not in versions(root):
            raise ValueError(f"{root} has no published version {base} to start deltas from")
        self.folder, self.writer, self.base, self.shard_bytes = (
            folder_of(root, version),
            writer,
            base,
            shard_bytes,
        )
        if (self.folder / INDEX).exists():
            raise FileExistsError(f"version {version} is published already in {self.folder}")
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        self._part = self.folder / "parts" / f"{writer}.json"
        for path in (self._part, *self.folder.glob(f"{writer}-*.safetensors"), self._deltas_path):
            path.unlink(missing_ok=True)
        self._entries: dict[str, Entry] = {}
        self._pending: dict[str, torch.Tensor] = {}
        self._shards = 0
        self._deltas = -1  # descriptor
        self._deltas_end = 0

    @property
    def _deltas_path(self) -> Path:
        return self.folder / f"{self.writer}.deltas"

    def add(self, name: str, tensor: torch.Tensor, old: torch.Tensor | None = None) -> None:
        """Adds a tensor; with `old`, the base version's, only the changes. Raises ValueError if it was added before."""
        if old is not None:
            self.add_changed({name: (old, tensor)})
            return
        self._refuse_twice(name)
        held = sum(t.nbytes for t in self._pending.values())
        if self._pending and held + tensor.nbytes > self.shard_bytes:
            self._write_shard()
        # A copy, because the trainer goes on to change its weights.
        self._pending[name] = tensor.detach().to("cpu", copy=True)

    def add_changed(
        self,
        pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        each: Callable[..., Iterable[Delta]] = map,
    ) -> None:
        """Adds tensors, each as a pair of (base version's, new), and writes only the changes where that is smaller.

        `each` calls a function for every pair, in order; pass a pool's `map` to compare several at a time.
        """
        if self.base is None and pairs:
            raise ValueError(
                f"{next(iter(pairs))}: cannot write changes, because this writer was opened without a base version"
            )
        for name in pairs:
            self._refuse_twice(name)
        for (name, (_, new)), delta in zip(pairs.items(), each(_encode, pairs.values()), strict=True):
            if delta.kind == "whole":
                self.add(name, new)
            else:
                self._put_delta(name, delta)

    def _refuse_twice(self, name: str) -> None:
        if name in self._entries or name in self._pending:
            raise ValueError(f"{self.writer} has written {name} already")

    def _put_delta(self, name: str, delta: Delta) -> None:
        data = delta.to_bytes()
        with naming(self._deltas_path):
            if self._deltas < 0:
                self._deltas = os.open(self._deltas_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            write_whole(self._deltas, data)
        self._entries[name] = Entry(
            self._deltas_path.name, delta.dtype, delta.shape, delta.result, self._deltas_end, len(data)
        )
        self._deltas_end += len(data)

    def _write_shard(self) -> None:
        file = f"{self.writer}-{self._shards:05d}.safetensors"
        described = [Derived(name, tuple(t.shape), t.dtype) for name, t in self._pending.items()]
        with ShardFile(self.folder / file, described) as shard:
            for name, tensor in self._pending.items():
                shard.write(name, tensor)
            sums = shard.close()
        for name, tensor in self._pending.items():
            self._entries[name] = Entry(file, DTYPES[tensor.dtype], tuple(tensor.shape), sums[name])
        self._pending = {}
        self._shards += 1

    def finish(self) -> int:
        """Waits until all tensors are on the disk, then writes this writer's part. Returns the number of bytes."""
        if self._pending:
            self._write_shard()
        if self._deltas >= 0:
            with naming(self._deltas_path):
                os.fsync(self._deltas)
            os.close(self._deltas)
            self._deltas = -1
        flush(self.folder)
        write_atomically(self._part, seal(_Part(self.base if self._deltas_end else None, self._entries)))
        return sum((self.folder / file).stat().st_size for file in {e.file for e in self._entries.values()})


def publish(
    root: Path,
    version: int,
    writers: Sequence[str],
    format: Mapping[str, Any] | None = None,
    companions: Path | None = None,
    timeout_s: float = 0.0,
) -> Index:
    """Publishes a version, after `finish` of all `writers` has returned. Only one process may call this.

    `companions` is a model folder whose configuration and tokenizer are copied; with them, engines can load a version
    without deltas as a model folder. Waits up to `timeout_s` until the parts of writers on other nodes are visible.
    Raises ValueError if a writer's part is missing or damaged, if there is a part of a writer that is not in `writers`,
    if two writers wrote the same tensor, or if writers have different bases; FileExistsError if the version is
    published already.
    """
    folder = folder_of(root, version)
    if (folder / INDEX).exists():
        raise FileExistsError(f"version {version} is published already in {folder}")
    _wait_for(folder / "parts", writers, timeout_s)
    index = _gather(folder, version, writers, dict(format or {}))
    if companions is not None:
        copy_companions(companions, folder)
    if all(entry.start is None for entry in index.tensors.values()):
        weight_map = {name: entry.file for name, entry in index.tensors.items()}
        (folder / HF_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in folder.iterdir():
        if path.suffix not in (".safetensors", ".deltas"):  # `finish` has flushed these
            flush(path)
    write_atomically(folder / INDEX, seal(index))
    flush(root)
    return index


def _wait_for(parts: Path, writers: Sequence[str], timeout_s: float) -> None:
    """Waits until the parts of all writers are visible, or `timeout_s` is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if {f"{writer}.json" for writer in writers} <= {path.name for path in parts.glob("*.json")}:
            return
        time.sleep(0.05)


def _gather(folder: Path, version: int, writers: Sequence[str], format: dict[str, Any]) -> Index:
    parts = folder / "parts"
    there = {path.stem for path in parts.glob("*.json")} if parts.is_dir() else set()
    missing, unknown = sorted(set(writers) - there), sorted(there - set(writers))
    if missing or unknown:
        faults = [f"no part of {', '.join(missing)}"] * bool(missing)
        faults += [f"a part of {', '.join(unknown)}, which is not a writer of it"] * bool(unknown)
        raise ValueError(f"version {version} in {folder} cannot be published: {'; '.join(faults)}")
    tensors: dict[str, Entry] = {}
    bases: set[int] = set()
    for writer in writers:
        part = unseal(parts / f"{writer}.json", (parts / f"{writer}.json").read_bytes(), _Part)
        twice = sorted(tensors.keys() & part.tensors.keys())
        if twice:
            raise ValueError(
                f"version {version}: {twice[0]} was written by {writer} and also in {tensors[twice[0]].file}"
            )
        tensors |= part.tensors
        bases |= set() if part.base is None else {part.base}
    if len(bases) > 1:
        raise ValueError(f"version {version}: its writers start from different versions, {sorted(bases)}")
    return Index(version, format, next(iter(bases), None), tensors)
