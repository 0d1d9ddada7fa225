"""Encodes typed values as buffers and back: msgpack for the structure, one raw buffer per array, no pickle.

`encode` returns a list of buffers. The first is msgpack. Every numpy array in the value becomes an extension
that points at one of the following buffers, each of which is an array's own memory (no copy).
`actors/wire.py` sends the buffers as ZeroMQ frames; the journal (`store/journal.py`) writes them one after
another.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:  # saves a process without arrays 45 ms and 12 MiB
    import numpy as np

Buffer = bytes | memoryview

_ARRAY = 1  # msgpack extension code: (buffer index, dtype, shape)

# Object arrays would need pickle. All other kinds that training uses are allowed.
_DTYPE_KINDS = frozenset("biuf")


class ArrayHeader(msgspec.Struct, array_like=True, frozen=True):
    """Which buffer holds an array's memory, and how to read it."""

    buffer: int
    dtype: str
    shape: tuple[int, ...]


@functools.cache
def _dtypes() -> dict[str, np.dtype[Any]]:
    """The dtypes that a header may name, by `dtype.str`. numpy itself would accept much more than these."""
    import numpy as np

    both = ((np.dtype("<" + code), np.dtype(">" + code)) for code in "?bhilqBHILQefdg")
    return {dtype.str: dtype for pair in both for dtype in pair}


def encode(value: Any) -> list[Buffer]:
    """Encodes `value` (msgspec types and numpy arrays, freely nested) without copying array memory.

    Raises TypeError for any other type, or for an array whose dtype is not bool, int or float.
    """
    buffers: list[Buffer] = []

    def array_to_extension(obj: Any) -> Any:
        import numpy as np

        if not isinstance(obj, np.ndarray):
            raise TypeError(f"cannot encode a {type(obj).__name__}: send msgspec types or numpy arrays")
        if obj.dtype.kind not in _DTYPE_KINDS:
            raise TypeError(f"cannot encode an array of dtype {obj.dtype}: use bool, int or float")
        contiguous = np.ascontiguousarray(obj)
        buffers.append(memoryview(contiguous.reshape(-1).view(np.uint8)))
        header = ArrayHeader(len(buffers), contiguous.dtype.str, obj.shape)
        return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode(header))

    head = msgspec.msgpack.encode(value, enc_hook=array_to_extension)
    return [head, *buffers]


def decode(type_: Any, buffers: Sequence[Buffer]) -> Any:
    """Decodes the buffers of `encode` into `type_`. Arrays are read-only views of the buffers.

    Raises msgspec.ValidationError (a ValueError) if the structure or an array's size does not fit, or if two
    arrays name the same buffer: else a short message could name a buffer a million times.
    """
    if len(buffers) > 1:
        return _make_decoder(type_, buffers).decode(buffers[0])
    try:
        decoder = _decoder(type_)
    except TypeError:  # the type cannot be hashed: Annotated with a dictionary, for instance
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
    """A cached decoder for values without arrays, like most small messages."""
    return _make_decoder(type_, (b"",))


def _array(header: ArrayHeader, buffers: Sequence[Buffer]) -> np.ndarray:
    import numpy as np

    dtype = _dtypes().get(header.dtype)
    if dtype is None:
        raise msgspec.ValidationError(
            f"array dtype {header.dtype[:20]!r} is not a bool, int or float dtype of numpy"
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
