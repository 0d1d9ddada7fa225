"""Weight versions in a folder: written by many, published at once, read by whoever comes, now or later.

    root/v000000012/trainer-3-00000.safetensors   a writer's whole tensors
                    trainer-3.deltas              its tensors that are told as changes since the base version
                    parts/trainer-3.json          what it wrote, with a checksum per tensor
                    leases/4f….json               a reader, and until when it may be reading
                    index.json                    all of it: the version exists when this does

This module knows names and indices. `disk_writer` writes and publishes; readers (`disk_reader`) hold leases, which
`disk_removal` respects.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from verst.sync.files.durable import flush, naming, write_whole

INDEX = "index.json"
_MARK = "newest"
_NAME = re.compile(r"v(\d{9,})")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a tensor of a version is. `start` and `length`: of its delta in a `.deltas` file, else None."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str
    start: int | None = None
    length: int | None = None


class Index(msgspec.Struct, frozen=True):
    """A published version. `format` is config.json's `quantization_config`, {} for BF16; `base` what deltas need."""

    version: int
    format: dict[str, Any]
    base: int | None
    tensors: dict[str, Entry]


class _Sealed(msgspec.Struct, frozen=True):
    checksum: str
    content: msgspec.Raw


def folder_of(root: Path, version: int) -> Path:
    """Where a version is, or would be."""
    return root / f"v{version:09d}"


def versions(root: Path) -> list[int]:
    """The published versions, oldest first; one that comes or goes meanwhile may be missing."""
    return sorted(v for v, folder in folders(root) if (folder / INDEX).is_file())


def newest(root: Path, timeout_s: float = 10.0) -> int | None:
    """The newest published version, never an older one than was ever told before; None: there is none."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = max(versions(root), default=-1)
        # Reading a folder is not atomic: it can miss a version that goes and the one that comes for it as well.
        # What is gone is older than this mark.
        if found >= _newest_mark(root) or time.monotonic() > deadline:
            return found if found >= 0 else None
        time.sleep(0.005)


def _newest_mark(root: Path) -> int:
    try:
        return int((root / _MARK).read_text())
    except FileNotFoundError:
        return -1


def mark_newest(root: Path) -> None:
    """Before anything is removed: says which version is the newest."""
    published = versions(root)
    if published and published[-1] > _newest_mark(root):
        write_atomically(root / _MARK, f"{published[-1]}\n".encode())


def folders(root: Path) -> list[tuple[int, Path]]:
    """All versions with their folders, published or not."""
    return (
        []
        if not root.is_dir()
        else [(int(m[1]), path) for path in root.iterdir() if (m := _NAME.fullmatch(path.name))]
    )


def read_index(root: Path, version: int) -> Index:
    """Raises ValueError when the version is not published or its index is damaged."""
    path = folder_of(root, version) / INDEX
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{root} has no published version {version}; it has {versions(root) or 'none'}"
        ) from None
    return unseal(path, data, Index)


def seal(content: msgspec.Struct) -> bytes:
    """A file's bytes, with their checksum."""
    raw = msgspec.json.encode(content)
    return msgspec.json.encode(_Sealed(xxhash.xxh3_128_hexdigest(raw), msgspec.Raw(raw)))


def unseal[T](path: Path, data: bytes, kind: type[T]) -> T:
    """What was sealed. Raises ValueError for damage, naming the file."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if xxhash.xxh3_128_hexdigest(bytes(sealed.content)) != sealed.checksum:
            raise ValueError(f"{path} is damaged: its checksum is another")
        return msgspec.json.decode(sealed.content, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Makes a file durable that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with naming(partial):
            write_whole(fd, data)
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(partial, path)
    flush(path.parent)
