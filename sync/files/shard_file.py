"""Writes one safetensors file piece by piece, with names and shapes known beforehand, and reads it back to check it.

safetensors' own `save_file` needs all tensors in memory at once; `ShardFile` needs only one piece of one tensor. The
pieces of a tensor must come in order; different tensors may come in any order. After `close` the file is complete and
on the disk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from verst.sync.files.durable import naming, write_whole
from verst.sync.files.tensor_checksum import Checksum, tensor_bytes
from verst.sync.formats import Derived

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH = {name: dtype for dtype, name in DTYPES.items()}
_CHUNK = 16 << 20


class ShardFile:
    """One safetensors file that is being written. Call `close` when all is written.

    A context manager that abandons the file at its end unless it was closed before.
    """

    def __init__(self, path: Path, tensors: Sequence[Derived]) -> None:
        """Creates the file. Raises FileExistsError if it exists, ValueError for a name given twice."""
        self.path = path
        # Wide elements first, so that each tensor is aligned to its element size; readers that map the file need that.
        ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        self._spans: dict[str, tuple[int, int]] = {}
        for tensor in ordered:
            size = math.prod(tensor.shape) * tensor.dtype.itemsize
            if tensor.name in header:
                raise ValueError(f"{path}: tensor {tensor.name} is given twice")
            header[tensor.name] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, at + size],
            }
            self._spans[tensor.name] = at, at + size
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._base = 8 + len(text)
        self.nbytes = self._base + at
        self._sums = {name: Checksum() for name in self._spans}
        self._done = dict.fromkeys(self._spans, 0)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with naming(path):
            write_whole(self._fd, len(text).to_bytes(8, "little") + text)

    def write(self, name: str, piece: torch.Tensor) -> None:
        """Appends to a tensor: all of it, or its next rows. Raises ValueError if that is beyond the tensor's end."""
        begin, end = self._spans[name]
        data = tensor_bytes(piece)
        at = begin + self._done[name]
        if at + len(data) > end:
            raise ValueError(f"{self.path}: {name} has {end - begin} bytes, but more were written")
        with naming(self.path):
            os.lseek(self._fd, self._base + at, os.SEEK_SET)
            write_whole(self._fd, data)
        self._sums[name].update(data)
        self._done[name] += len(data)

    def close(self) -> dict[str, str]:
        """Waits until the file is on the disk; returns the checksums by name.

        Raises ValueError if a tensor is incomplete.
        """
        missing = [n for n, (begin, end) in self._spans.items() if self._done[n] != end - begin]
        try:
            if missing:
                raise ValueError(f"{self.path}: {len(missing)} tensors are not whole, {missing[0]} first")
            with naming(self.path):
                os.fsync(self._fd)
        finally:
            self.abandon()
        return {name: state.hexdigest() for name, state in self._sums.items()}

    def abandon(self) -> None:
        """Closes the file as it is, complete or not. Further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()


def verify(path: Path, checksums: Mapping[str, str]) -> None:
    """Reads a file's tensors from the disk, 16 MiB at a time, and compares their checksums.

    Raises ValueError that names the file and every tensor that differs or is missing.
    """
    with naming(path), open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read the disk, not the page cache
        header, base = read_header(path)
        wrong = []
        for name, expected in checksums.items():
            if name not in header:
                wrong.append(f"{name} is missing")
                continue
            begin, end = header[name]["data_offsets"]
            state = Checksum()
            file.seek(base + begin)
            while begin < end and (data := file.read(min(_CHUNK, end - begin))):
                state.update(memoryview(data))
                begin += len(data)
            if state.hexdigest() != expected:
                wrong.append(f"{name} is {state.hexdigest()}, not {expected}")
    if wrong:
        shown = "\n  ".join(wrong[:20] + ([f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []))
        raise ValueError(f"{path} is damaged (checksums):\n  {shown}")


def read_header(path: Path) -> tuple[dict[str, dict], int]:
    """A safetensors file's header, and the offset where its data begin. Raises ValueError if it has no whole header."""
    with open(path, "rb") as file:
        prefix = file.read(8)
        size = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or size > os.fstat(file.fileno()).st_size:
            raise ValueError(
                f"{path} is not a whole safetensors file: it is shorter than its header of {size} bytes"
            )
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return header, 8 + size
