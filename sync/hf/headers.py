"""Reads the headers of a folder's safetensors files: what is stored, without reading any weight.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and place of
each tensor) and the tensors' bytes. This file imports no torch, so that `verst plan` can use it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_LFS = b"version https://git-lfs"
_LARGEST_HEADER = 100_000_000  # bytes; the same limit as the safetensors library's
_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its bytes are `begin` to `end` of the file."""

    file: str
    dtype: str  # in safetensors' spelling: BF16, F8_E4M3, …
    shape: tuple[int, ...]
    begin: int
    end: int


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a folder's weights: those of the index if there is one, else the single file.

    Raises ValueError if there are none, if some are missing, and if different readers would read different files.
    """
    index, single = folder / INDEX, folder / SINGLE
    if index.is_file():
        names = sorted(set(weight_map(folder).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: files named by {INDEX} are missing: {', '.join(missing)}")
        if single.is_file() and SINGLE not in names:
            raise ValueError(
                f"{folder} has two sets of weights: {SINGLE}, which transformers reads, and {len(names)} files that "
                f"{INDEX} names ({names[0]}, …), which engines and trainer read; {_newer(single, folder / names[0])}. "
                "Remove the set that is out of date"
            )
        return names
    if single.is_file():
        others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != SINGLE)
        if others:
            raise ValueError(
                f"{folder} has {SINGLE} and {', '.join(others)}, but no {INDEX}: transformers and the trainer read "
                f"{SINGLE} alone, engines read all of them. Move the others away"
            )
        return [SINGLE]
    raise ValueError(
        f"{folder} has neither {INDEX} nor {SINGLE}: no safetensors weights to read{_instead(folder)}"
    )


def weight_map(folder: Path) -> dict[str, str]:
    """The index of a folder: each tensor's file. Raises ValueError if it is no index."""
    path = folder / INDEX
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{path} has no weight_map")
    return found


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors in the folder's files by name. Raises ValueError for files that cannot be read or are cut short."""
    found: dict[str, StoredTensor] = {}
    for name in weight_files(folder):
        for tensor, stored in read_header(folder / name):
            if tensor in found:
                raise ValueError(f"{folder}: {tensor} is both in {found[tensor].file} and in {name}")
            found[tensor] = stored
    if (folder / INDEX).is_file():
        for tensor, file in weight_map(folder).items():
            if tensor not in found or found[tensor].file != file:
                raise ValueError(f"{folder / file} lacks {tensor}, which {INDEX} places there")
    return found


def read_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Names and places of a file's tensors. Raises ValueError if it is not a whole safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(max(8, len(_LFS)))
        if start.startswith(_LFS):
            raise ValueError(
                f"{path} is a pointer of git LFS ({size} bytes), not the file itself: run `git lfs pull` in its folder"
            )
        if len(start) < 8:
            raise ValueError(f"{path} is not a whole safetensors file: it has only {size} bytes")
        (length,) = struct.unpack("<Q", start[:8])
        if length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(
                f"{path} is not a whole safetensors file: its header should have {length} bytes, the file has {size}"
            )
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            found = [(name, _stored(path.name, 8 + length, entry)) for name, entry in tensors.items()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a whole safetensors file: its header is damaged ({error!r})"
            ) from error
    end = max((stored.end for _, stored in found), default=8 + length)
    if end > size:
        raise ValueError(f"{path} is not a whole safetensors file: {size} of {end} bytes are there")
    for name, stored in found:
        bits = _BITS.get(stored.dtype)
        if bits is not None and math.prod(stored.shape) * bits != (stored.end - stored.begin) * 8:
            raise ValueError(
                f"{path} is damaged: {name}, {stored.dtype} {stored.shape}, has {stored.end - stored.begin} bytes"
            )
        yield name, stored


def same_bytes(folder: Path, one: StoredTensor, other: StoredTensor, *, pieces: int | None = None) -> bool:
    """Whether two tensors of a folder are equal, bit for bit; with `pieces`, looks at that many pieces of 64 KiB."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    size, chunk = one.end - one.begin, 1 << 16
    count = -(-size // chunk)
    step = 1 if pieces is None else max(1, count // pieces)
    with (folder / one.file).open("rb") as first, (folder / other.file).open("rb") as second:
        for number in range(0, count, step):
            at, length = number * chunk, min(chunk, size - number * chunk)
            first.seek(one.begin + at)
            second.seek(other.begin + at)
            if first.read(length) != second.read(length):
                return False
    return True


def _stored(file: str, start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    return StoredTensor(file, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def _newer(one: Path, other: Path) -> str:
    newest = max((one, other), key=lambda path: path.stat().st_mtime)
    return f"{newest.name} is newer"


def _instead(folder: Path) -> str:
    """What else lies in the folder, for the message that it has no safetensors files."""
    others = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in folder.glob(kind))
    if not others:
        return ""
    return (
        f". It has {', '.join(others[:3])}{', …' if len(others) > 3 else ''}: save them as safetensors first, for "
        "example with transformers' from_pretrained and save_pretrained"
    )
