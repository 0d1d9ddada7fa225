"""Typed values to buffers and back: msgpack for structure, one raw buffer per array, no pickle.

`encode` returns a list of buffers. The first is msgpack; every numpy array or `bytes`-like blob inside
the value became an extension that points at one of the following buffers, which are the array's own
memory (no copy). The wire (`actors/wire.py`) sends them as ZeroMQ frames, the journal
(`journal.py`) writes them one after another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:  # 45 ms and 12 MiB that a process without arrays is spared
    import numpy as np

Buffer = bytes | memoryview

_ARRAY = 1  # msgpack extension code: (buffer index, dtype, shape)

# Object arrays would need pickle; everything else of numpy that training uses is allowed.
_DTYPE_KINDS = frozenset("biuf")


class ArrayHeader(msgspec.Struct, array_like=True, frozen=True):
    """Where an array's memory is among the buffers and how to read it."""

    buffer: int
    dtype: str
    shape: tuple[int, ...]


@functools.cache
def _dtypes() -> dict[str, np.dtype[Any]]:
    """What a header may name, as `dtype.str` has it. numpy would parse any other text like a small language."""
    import numpy as np

    both = ((np.dtype("<" + code), np.dtype(">" + code)) for code in "?bhilqBHILQefdg")
    return {dtype.str: dtype for pair in both for dtype in pair}


def encode(value: Any) -> list[Buffer]:
    """Encodes `value` (msgspec types and numpy arrays, nested at will) without copying array memory.

    Raises TypeError for a type that is neither, or for an array whose dtype is not bool, int or float.
    """
    buffers: list[Buffer] = []

    def array_to_extension(obj: Any) -> Any:
        import numpy as np

        if not isinstance(obj, np.ndarray):
            raise TypeError(f"cannot encode a {type(obj).__name__}: send msgspec types or numpy arrays")
        if obj.dtype.kind not in _DTYPE_KINDS:
            raise TypeError(f"cannot encode an array of dtype {obj.dtype}: only bool, int and float cross")
        contiguous = np.ascontiguousarray(obj)
        buffers.append(memoryview(contiguous.reshape(-1).view(np.uint8)))
        header = ArrayHeader(len(buffers), contiguous.dtype.str, obj.shape)
        return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode(header))

    head = msgspec.msgpack.encode(value, enc_hook=array_to_extension)
    return [head, *buffers]


def decode(type_: Any, buffers: Sequence[Buffer]) -> Any:
    """Decodes what `encode` returned into `type_`; arrays are read-only views of the buffers.

    Raises msgspec.ValidationError (a ValueError) when the structure, or an array's size, does not fit, or when
    two arrays claim one buffer: else a short message could name a buffer a million times.
    """
    if len(buffers) > 1:
        return _make_decoder(type_, buffers).decode(buffers[0])
    try:
        decoder = _decoder(type_)
    except TypeError:  # it cannot be hashed: Annotated with a dictionary, for instance
        decoder = _make_decoder(type_, buffers)
    return decoder.decode(buffers[0])


def _make_decoder(type_: Any, buffers: Sequence[Buffer]) -> msgspec.msgpack.Decoder[Any]:
    taken: set[int] = set()

    def extension_to_array(code: int, data: memoryview) -> np.ndarray:
        if code != _ARRAY:
            raise msgspec.ValidationError(f"unknown extension code {code}")
        header = msgspec.msgpack.decode(data, type=ArrayHeader)
        if header.buffer in taken:
            raise msgspec.ValidationError(f"array buffer {header.buffer} is named twice")
        array = _array(header, buffers)
        taken.add(header.buffer)
        return array

    return msgspec.msgpack.Decoder(type_, ext_hook=extension_to_array, dec_hook=_keep_array)


@functools.lru_cache(maxsize=1024)
def _decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    """For what has no arrays, as most small messages."""
    return _make_decoder(type_, (b"",))


def _array(header: ArrayHeader, buffers: Sequence[Buffer]) -> np.ndarray:
    import numpy as np

    dtype = _dtypes().get(header.dtype)
    if dtype is None:
        raise msgspec.ValidationError(
            f"array dtype {header.dtype[:20]!r} is not a bool, int or float of numpy's"
        )
    if not 1 <= header.buffer < len(buffers):
        raise msgspec.ValidationError(f"array buffer {header.buffer} of {len(buffers) - 1} does not exist")
    if len(header.shape) > 64:  # numpy's limit
        raise msgspec.ValidationError(f"array of {len(header.shape)} dimensions: at most 64")
    if any(n < 0 for n in header.shape):
        raise msgspec.ValidationError(f"array shape {header.shape} has a negative side")
    raw = memoryview(buffers[header.buffer]).cast("B")
    expected = dtype.itemsize
    for side in header.shape:
        expected *= side
    if raw.nbytes != expected:
        raise msgspec.ValidationError(
            f"array of {header.shape} {dtype} needs {expected} bytes, got {raw.nbytes}"
        )
    try:
        return np.frombuffer(raw, dtype=dtype).reshape(header.shape)
    except ValueError as error:  # (0, 2**70)
        raise msgspec.ValidationError(f"array shape {header.shape}: {error}") from error


def _keep_array(type_: type, obj: Any) -> Any:
    import numpy as np

    if type_ is np.ndarray and isinstance(obj, np.ndarray):
        return obj
    raise msgspec.ValidationError(f"expected {type_.__name__}, got {type(obj).__name__}")
