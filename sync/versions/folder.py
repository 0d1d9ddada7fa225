"""The names and indices of weight versions in a folder, which many write, one publishes and anybody can read.

    root/v000000012/trainer-3-00000.safetensors   a writer's whole tensors
                    trainer-3.deltas              its tensors that are stored as changes since the base version
                    parts/trainer-3.json          a list of its tensors, with a checksum for each
                    leases/4f….json               a reader, and until when it may be reading
                    index.json                    a list of all tensors: the version exists once this file does

`writer.py` writes and publishes versions. Readers (`reader.py`) hold leases (`leases.py`), which `removal.py` respects.
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
    """Where a tensor of a version is. `start` and `length` locate its delta in a `.deltas` file; else they are None."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    checksum: str
    start: int | None = None
    length: int | None = None


class Index(msgspec.Struct, frozen=True):
    """A published version.

    `format` is config.json's `quantization_config`, {} for BF16. `base` is the version that its deltas start from, None
    if it has no deltas.
    """

    version: int
    format: dict[str, Any]
    base: int | None
    tensors: dict[str, Entry]


class _Sealed(msgspec.Struct, frozen=True):
    checksum: str
    content: msgspec.Raw


def folder_of(root: Path, version: int) -> Path:
    """The folder of a version, whether it exists or not."""
    return root / f"v{version:09d}"


def versions(root: Path) -> list[int]:
    """The published versions, oldest first. One that is published or removed meanwhile may be missing."""
    return sorted(v for v, folder in folders(root) if (folder / INDEX).is_file())


def newest(root: Path, timeout_s: float = 10.0) -> int | None:
    """The newest published version, or None. Never returns an older version than any earlier call did."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = max(versions(root), default=-1)
        # Reading a folder is not atomic: it can miss both a version that is being removed and a newer one that is being
        # published. Removed versions are never newer than the mark.
        if found >= _newest_mark(root) or time.monotonic() > deadline:
            return found if found >= 0 else None
        time.sleep(0.005)


def _newest_mark(root: Path) -> int:
    try:
        return int((root / _MARK).read_text())
    except FileNotFoundError:
        return -1


def mark_newest(root: Path) -> None:
    """Writes down which version is the newest. Called before any version is removed."""
    published = versions(root)
    if published and published[-1] > _newest_mark(root):
        write_atomically(root / _MARK, f"{published[-1]}\n".encode())


def folders(root: Path) -> list[tuple[int, Path]]:
    """All versions and their folders, published or not."""
    return (
        []
        if not root.is_dir()
        else [(int(m[1]), path) for path in root.iterdir() if (m := _NAME.fullmatch(path.name))]
    )


def read_index(root: Path, version: int) -> Index:
    """Reads a version's index. Raises ValueError if the version is not published or its index is damaged."""
    path = folder_of(root, version) / INDEX
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{root} has no published version {version}; it has {versions(root) or 'none'}"
        ) from None
    return unseal(path, data, Index)


def seal(content: msgspec.Struct) -> bytes:
    """The bytes of a file that holds `content` and its checksum."""
    raw = msgspec.json.encode(content)
    return msgspec.json.encode(_Sealed(xxhash.xxh3_128_hexdigest(raw), msgspec.Raw(raw)))


def unseal[T](path: Path, data: bytes, kind: type[T]) -> T:
    """The content that was sealed. Raises ValueError that names the file if it is damaged."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        if xxhash.xxh3_128_hexdigest(bytes(sealed.content)) != sealed.checksum:
            raise ValueError(f"{path} is damaged: its content does not match its checksum")
        return msgspec.json.decode(sealed.content, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file durably; it appears whole or not at all."""
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
