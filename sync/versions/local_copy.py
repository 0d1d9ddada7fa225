"""A copy of one weight version on an engine's own node, updated from version to version by deltas.

Only the changes are read from the shared file system; all tensors that an engine loads are in the copy. The copy is a
file without a name, so nobody else can find it, and its memory or disk space is freed when its process ends, however
that happens. So nothing left by an earlier process can be mistaken for a version. Readers of the same user open it
under `path` while this process lives.

Every byte is verified when it is read (`VersionReader`), and a delta's base and result by their checksums. While a
version is being applied, and after that has failed, the copy belongs to no version. The next version is then built from
the start of its chain.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from verst.sync.files.shard_file import TORCH
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.versions.folder import Entry, Index
from verst.sync.versions.reader import VersionReader, open_version

_ALIGNED = 64  # bytes; enough for the elements of every dtype
_Span = tuple[int, int]  # start, bytes


def default_place() -> Path:
    """The default folder for copies: $TMPDIR, which clusters set to a node's own disk, or else /dev/shm."""
    if "TMPDIR" in os.environ:
        return Path(os.environ["TMPDIR"])
    shared_memory = Path("/dev/shm")
    return shared_memory if shared_memory.is_dir() else Path(tempfile.gettempdir())


class LocalCopy:
    """The local copy of a version's tensors. Only one caller may use it at a time."""

    def __init__(self, place: Path, threads: int = 4) -> None:
        """`place` is a folder on this node; `threads` is the number of tensors that are updated at a time."""
        self._place, self._threads = place, threads
        # Unbuffered, because it is only written through the mapping.
        self._file = tempfile.TemporaryFile(dir=place, buffering=0)  # noqa: SIM115
        self._memory: mmap.mmap | None = None
        self._spans: dict[str, _Span] = {}
        self._of: tuple[Path, int] | None = None

    @property
    def version(self) -> int | None:
        """The version that this is a copy of, or None."""
        return None if self._of is None else self._of[1]

    @property
    def path(self) -> str:
        """The path under which other processes of this user can open the copy."""
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}"

    def follow(self, root: Path, version: int, timeout_s: float) -> int:
        """Becomes a copy of a published version; returns the number of bytes read for that.

        Raises ValueError that names tensor and file if one is damaged, OSError if there is no room or a file cannot be
        read, TimeoutError after `timeout_s`. The copy then belongs to no version.
        """
        deadline = time.monotonic() + timeout_s
        with open_version(root, version, lease_s=timeout_s) as reader:
            chain = reader.chain
            have = self._place_in(root, chain)
            self._of = None
            if have < 0:
                self._make_room(chain[0])
            read = 0
            with ThreadPoolExecutor(self._threads, "weights") as pool:
                for index in chain[have + 1 :]:
                    if _spans(index)[0] != self._spans:
                        raise ValueError(f"version {index.version} in {root} has other tensors than its base")
                    take = partial(self._take, reader, index, deadline)
                    read += sum(pool.map(take, index.tensors))
            self._of = root, version
        return read

    def close(self) -> None:
        """Frees the space, as soon as nobody holds a tensor of the copy."""
        self._of, self._memory = None, None
        self._file.close()

    def _place_in(self, root: Path, chain: list[Index]) -> int:
        """The index in `chain` of the version that this is a copy of; -1: none of them."""
        return next((n for n, index in enumerate(chain) if (root, index.version) == self._of), -1)

    def _make_room(self, index: Index) -> None:
        spans, size = _spans(index)
        if spans == self._spans and self._memory is not None:
            return
        self._spans, self._memory = spans, None
        os.ftruncate(self._file.fileno(), 0)
        try:
            # Allocates now; otherwise a full disk would raise a signal when a page is first written.
            os.posix_fallocate(self._file.fileno(), 0, max(size, 1))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: a copy of the weights takes {size / 2**30:.2f} GiB; "
                "weights.local_folder chooses another folder",
                str(self._place),
            ) from error
        self._memory = mmap.mmap(self._file.fileno(), max(size, 1))

    def _take(self, reader: VersionReader, index: Index, deadline: float, name: str) -> int:
        """Replaces one tensor by a version's; returns the number of bytes read."""
        if time.monotonic() > deadline:
            raise TimeoutError(f"version {index.version} was not copied to {self._place} by the deadline")
        assert self._memory is not None
        entry, (start, size) = index.tensors[name], self._spans[name]
        target = _tensor(self._memory, start, size, entry)
        new = reader.tensor(name, target if entry.start is not None else None, index.version)
        if size:
            target.reshape(-1).view(torch.uint8).copy_(torch.frombuffer(tensor_bytes(new), dtype=torch.uint8))
        return size if entry.length is None else entry.length


def tensors_in(path: str, index: Index) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the copy at `path`, with their names; `index` is that of its version.

    They are views of the mapped file, so only the parts that are used are read.
    """
    spans, _ = _spans(index)
    fd = os.open(path, os.O_RDONLY)
    try:
        # A private mapping: a loader that writes to a tensor changes only its own pages.
        memory = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(fd)
    for name, entry in index.tensors.items():
        yield name, _tensor(memory, *spans[name], entry)


def _spans(index: Index) -> tuple[dict[str, _Span], int]:
    """Where each tensor is in a copy, and the copy's size. Follows from names, shapes and dtypes alone."""
    spans, at = {}, 0
    for name, entry in sorted(index.tensors.items()):
        size = math.prod(entry.shape) * TORCH[entry.dtype].itemsize
        spans[name] = at, size
        at += math.ceil(size / _ALIGNED) * _ALIGNED
    return spans, at


def _tensor(memory: mmap.mmap, start: int, size: int, entry: Entry) -> torch.Tensor:
    """A view of the mapping, which it keeps alive."""
    dtype = TORCH[entry.dtype]
    if size == 0:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start).view(dtype).view(entry.shape)
