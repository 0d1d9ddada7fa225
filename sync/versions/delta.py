"""Lossless deltas: the changes of a tensor from one version to the next, to be sent or stored instead of all of it.

An optimizer step at RL's learning rates leaves most bfloat16 weights unchanged and moves the rest by one or two units
in the last place. A delta holds the gaps between changed elements, and the differences of their bits as integers (so
NaNs and -0.0 need no special care). Both are split into byte planes and compressed with zstd if that helps. If a delta
would not be smaller, it holds the whole tensor instead. It also holds the checksums of its base and of its result:
`apply` refuses another base and never returns another result.

Pure functions: nothing is kept between calls. `encode` compares on the tensors' device and does the rest on the CPU. It
briefly needs a few times the tensor's memory.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import torch
import zstandard
from msgspec.structs import replace

from verst.sync.files.shard_file import DTYPES, TORCH
from verst.sync.files.tensor_checksum import checksum, tensor_bytes

_LEVEL = 3
# If a larger part of the elements than this changed, a delta is not worth trying.
_DENSE = 0.5
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DamagedDelta(ValueError):
    """The bytes of a delta are not those that `encode` made."""


class Delta(msgspec.Struct, frozen=True):
    """The way from one tensor to another of the same dtype and shape.

    `base` and `result` are the checksums of the two. By `kind`, `payload` is:
    - "same": empty.
    - "whole": the new tensor's bytes.
    - "changes": `count` gaps of `width` bytes, and as many differences of the element's size; both in byte planes, the
      lowest byte first. One zstd frame if `packed`.
    """

    kind: Literal["same", "changes", "whole"]
    dtype: str
    shape: tuple[int, ...]
    base: str
    result: str
    count: int = 0
    width: int = 0
    packed: bool = False
    payload: bytes = b""

    @property
    def nbytes(self) -> int:
        """Size in bytes, apart from a few hundred bytes of header."""
        return len(self.payload)

    def to_bytes(self) -> bytes:
        """The delta as bytes, for a file or the wire."""
        return msgspec.msgpack.encode(self)

    @staticmethod
    def from_bytes(data: bytes | bytearray) -> Delta:
        """The delta from the bytes of `to_bytes`. Raises ValueError for other bytes."""
        try:
            return msgspec.msgpack.decode(data, type=Delta)
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a delta of a tensor: {error}") from error


def encode(old: torch.Tensor, new: torch.Tensor) -> Delta:
    """Makes the delta from `old` to `new`.

    Raises ValueError if their dtypes or shapes differ, or if the dtype is not known.
    """
    if old.dtype != new.dtype or old.shape != new.shape:
        raise ValueError(
            f"no delta between {old.dtype} {tuple(old.shape)} and {new.dtype} {tuple(new.shape)}: send it whole"
        )
    if new.dtype not in DTYPES:
        raise ValueError(f"no delta of {new.dtype}: known are {', '.join(map(str, DTYPES))}")
    before, after = _integers(old), _integers(new)
    changed = (before != after).nonzero().squeeze(1)
    count = changed.numel()
    same = Delta("same", DTYPES[new.dtype], tuple(new.shape), base=checksum(old), result=checksum(new))
    if count == 0:
        return same
    if count <= _DENSE * after.numel():
        payload, width, packed = _changes(changed, after[changed] - before[changed])
        if len(payload) < new.nbytes:
            return replace(same, kind="changes", count=count, width=width, packed=packed, payload=payload)
    return replace(same, kind="whole", payload=bytes(tensor_bytes(new)))


def apply(old: torch.Tensor, delta: Delta) -> torch.Tensor:
    """Applies a delta; returns the new tensor, on the CPU, and leaves `old` unchanged.

    Raises ValueError if `old` is not the delta's base, and DamagedDelta (a ValueError) if the result is not the
    delta's.
    """
    if DTYPES.get(old.dtype) != delta.dtype or tuple(old.shape) != delta.shape:
        raise ValueError(
            f"this delta is of {delta.dtype} {delta.shape}, not of {DTYPES.get(old.dtype)} {tuple(old.shape)}"
        )
    have = checksum(old)
    if have != delta.base:
        raise ValueError(
            f"this delta starts from {delta.base}, the tensor at hand is {have}: it is of another version"
        )
    if delta.kind == "whole":
        new = _whole(delta)
    else:
        new = old.detach().to("cpu", copy=True).contiguous()
        if delta.kind == "changes":
            _apply_changes(_integers(new), delta)
    made = checksum(new)
    if made != delta.result:
        raise DamagedDelta(f"this delta is damaged: it led to {made}, not to {delta.result}")
    return new


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of all elements as integers, flat; a view if the tensor is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.dtype.itemsize])


def _changes(positions: torch.Tensor, differences: torch.Tensor) -> tuple[bytes, int, bool]:
    """Returns the payload, the bytes per gap, and whether the payload is compressed."""
    gaps = torch.diff(positions, prepend=positions.new_full((1,), -1)) - 1
    width = next(w for w in (1, 2, 4, 8) if int(gaps.max()) < 1 << (8 * w - (w == 8)))
    raw = b"".join(_planes(_narrow(gaps, width))) + b"".join(_planes(differences))
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
    return (packed, width, True) if len(packed) < 0.95 * len(raw) else (raw, width, False)


def _narrow(gaps: torch.Tensor, width: int) -> torch.Tensor:
    # Large gaps wrap in the signed type; their bytes are those of the unsigned type of the same size.
    return gaps.to(_INTEGERS[width])


def _planes(values: torch.Tensor) -> list[memoryview]:
    octets = values.cpu().contiguous().view(torch.uint8).view(values.numel(), -1)
    return [tensor_bytes(octets[:, i]) for i in range(octets.shape[1])]


def _join(planes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `_planes`: values of `dtype` from uint8 [bytes per value, values]."""
    # A copy, because a view might not be aligned for the dtype.
    return planes.t().clone(memory_format=torch.contiguous_format).view(dtype).reshape(-1)


def _whole(delta: Delta) -> torch.Tensor:
    dtype = TORCH[delta.dtype]
    if len(delta.payload) != math.prod(delta.shape) * dtype.itemsize:
        raise DamagedDelta(
            f"this delta is damaged: {len(delta.payload)} bytes for {delta.dtype} {delta.shape}"
        )
    return torch.frombuffer(bytearray(delta.payload), dtype=torch.uint8).view(dtype).view(delta.shape)


def _apply_changes(elements: torch.Tensor, delta: Delta) -> None:
    size = elements.element_size()
    if delta.width not in _INTEGERS or not 1 <= delta.count <= elements.numel():
        raise DamagedDelta(f"this delta is damaged: {delta.count} gaps of {delta.width} bytes")
    wanted = delta.count * (delta.width + size)
    raw = _unpack(delta, wanted)
    if len(raw) != wanted:
        raise DamagedDelta(f"this delta is damaged: {len(raw)} bytes for {delta.count} changes")
    octets = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, delta.count)
    gaps = _join(octets[: delta.width], _INTEGERS[delta.width]).long()
    if delta.width < 8:
        gaps &= (1 << (8 * delta.width)) - 1
    positions = (gaps + 1).cumsum(0) - 1
    first, last = int(positions.min()), int(positions.max())
    if int(gaps.min()) < 0 or first < 0 or last >= elements.numel():
        raise DamagedDelta(
            f"this delta is damaged: it changes elements {first} to {last} of {elements.numel()}"
        )
    elements[positions] += _join(octets[delta.width :], elements.dtype)


def _unpack(delta: Delta, wanted: int) -> bytes:
    if not delta.packed:
        return delta.payload
    try:
        # Reads no more than the header says, whatever size the frame claims.
        reader = zstandard.ZstdDecompressor().stream_reader(delta.payload)
        return reader.read(wanted + 1)
    except zstandard.ZstdError as error:
        raise DamagedDelta(f"this delta is damaged: {error}") from error
