"""Reads a weight version from a folder, and verifies every byte."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from verst.sync.files.durable import naming
from verst.sync.files.shard_file import TORCH, read_header
from verst.sync.files.tensor_checksum import checksum
from verst.sync.versions.delta import Delta, apply
from verst.sync.versions.folder import Entry, Index, folder_of, newest, read_index, versions
from verst.sync.versions.leases import Lease


class VersionReader:
    """A version and the versions that its deltas start from. None of them is removed while this is open."""

    def __init__(self, root: Path, indices: list[Index], lease: Lease) -> None:
        self.root, self._lease = root, lease
        self._chain = {index.version: index for index in indices}
        self.index = indices[0]
        self._headers: dict[Path, tuple[dict[str, dict], int]] = {}

    @property
    def version(self) -> int:
        """The version's number."""
        return self.index.version

    @property
    def folder(self) -> Path:
        """The version's folder."""
        return folder_of(self.root, self.version)

    @property
    def chain(self) -> list[Index]:
        """The versions that this one is built from: a whole version, the changes after it, …, the version itself."""
        return list(reversed(self._chain.values()))

    def tensor(self, name: str, old: torch.Tensor | None = None, version: int | None = None) -> torch.Tensor:
        """Reads a tensor of this version, or of another `version` in its `chain`, to the CPU and verifies its checksum.

        `old` is the tensor of the version that the deltas start from (`index.base`); without it, that one is read too.
        Raises ValueError for an unknown name, and ValueError that names tensor and file if they are damaged.
        """
        return self._tensor(self.version if version is None else version, name, old)

    def verify(self) -> None:
        """Reads and verifies all tensors. Raises ValueError that names every damaged tensor and its file."""
        faults = []
        for name in self.index.tensors:
            try:
                self.tensor(name)
            except (ValueError, OSError) as error:
                faults.append(str(error))
        if faults:
            shown = "\n  ".join(faults[:20] + ([f"and {len(faults) - 20} more"] if len(faults) > 20 else []))
            raise ValueError(f"version {self.version} in {self.folder} is damaged:\n  {shown}")

    def renew(self, seconds: float) -> None:
        """Extends the lease, for a reader that takes longer than it expected."""
        self._lease.renew(seconds)

    def close(self) -> None:
        """Releases the version, which may be removed from then on."""
        self._lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensor(self, version: int, name: str, old: torch.Tensor | None) -> torch.Tensor:
        index = self._chain[version]
        if name not in index.tensors:
            raise ValueError(f"version {version} in {folder_of(self.root, version)} has no tensor {name}")
        entry = index.tensors[name]
        path = folder_of(self.root, version) / entry.file
        try:
            if entry.start is None:
                return self._whole(path, name, entry)
            delta = Delta.from_bytes(_read(path, entry.start, entry.length or 0))
            if old is None:
                assert index.base is not None
                old = self._tensor(index.base, name, None)
            made = apply(old, delta)
        except ValueError as error:
            raise ValueError(f"{name} of version {version} in {path}: {error}") from error
        if delta.result != entry.checksum:
            raise ValueError(
                f"{name} of version {version} in {path}: its delta leads to checksum {delta.result}, not "
                f"{entry.checksum}"
            )
        return made

    def _whole(self, path: Path, name: str, entry: Entry) -> torch.Tensor:
        if path not in self._headers:
            self._headers[path] = read_header(path)
        header, base = self._headers[path]
        if name not in header:
            raise ValueError("the file does not hold it")
        found = header[name]
        if found["dtype"] != entry.dtype or tuple(found["shape"]) != entry.shape:
            raise ValueError(
                f"it is {found['dtype']} {found['shape']}, but the index says {entry.dtype} {entry.shape}"
            )
        begin, end = found["data_offsets"]
        data = _read(path, base + begin, end - begin)
        tensor = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        tensor = tensor.view(TORCH[entry.dtype]).view(entry.shape)
        if checksum(tensor) != entry.checksum:
            raise ValueError(f"damaged: its checksum is {checksum(tensor)}, not {entry.checksum}")
        return tensor


def _read(path: Path, start: int, length: int) -> bytearray:
    data = bytearray(length)
    view, at = memoryview(data), 0
    with naming(path), open(path, "rb", buffering=0) as file:
        while at < length:
            count = os.preadv(file.fileno(), [view[at:]], start + at)
            if count == 0:
                raise ValueError(f"the file ends {length - at} bytes too early")
            at += count
    return data


def open_version(
    root: Path, version: int | None = None, lease_s: float = 3600.0, timeout_s: float = 60.0
) -> VersionReader:
    """Opens a published version, by default the newest, and protects it and its bases from removal.

    The protection lasts `lease_s`, even if this process dies, unless it calls `renew`. Raises ValueError if there is no
    such version, TimeoutError if for `timeout_s` each version was removed before it could be opened.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        wanted = newest(root) if version is None else version
        if wanted is None:
            raise ValueError(f"{root} has no published version")
        if version is not None and version not in (published := versions(root)):
            raise ValueError(f"{root} has no published version {version}; it has {published or 'none'}")
        try:
            lease = Lease(folder_of(root, wanted), lease_s)
        except FileNotFoundError:
            # It was removed after it was listed. The next attempt sees a newer version, or raises the ValueError above.
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{root}: for {timeout_s} s, every version was removed before one could be opened"
                ) from None
            time.sleep(0.05)
            continue
        try:
            indices = [read_index(root, wanted)]
            while (base := indices[-1].base) is not None:
                indices.append(read_index(root, base))
        except ValueError:
            lease.release()
            raise
        return VersionReader(root, indices, lease)
