"""A rank's table of blocks: the parts of Hugging Face tensors that it holds, and where they lie in its memory.

A block is a box of a Hugging Face tensor (a range in each dimension), together with the offset and strides of its
elements in one of the rank's parameters. A trainer rank's table follows from its layout (`held_blocks`), an
engine's from its own loader (`load_trace.py`). `plan.py` matches the two sides. The tables are numpy arrays,
because a model of a trillion parameters has millions of blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch

from verst.sync.layout.layout import LocalParameter

DIMS = 3  # dimensions of a box; shapes with fewer are padded with leading ones

# The dtypes that can be sent. A table names a dtype by its index in this list.
DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
]

BLOCK = np.dtype(
    [
        ("tensor", np.int32),  # index into the table's `names`
        ("start", np.int64, DIMS),
        ("length", np.int64, DIMS),
        ("parameter", np.int32),  # index into the rank's parameters
        ("offset", np.int64),  # the box's first element in the parameter's storage, in elements
        ("stride", np.int64, DIMS),  # in elements
    ]
)


@dataclass(frozen=True)
class Blocks:
    """The table of one rank; `rows` is an array of BLOCK."""

    names: list[str]
    shapes: list[tuple[int, ...]]
    rows: np.ndarray
    dtypes: list[torch.dtype]  # one for each parameter

    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The shape and dtype of each whole tensor of which the rank holds a block, by name."""
        numbers, first = np.unique(self.rows["tensor"], return_index=True)
        return {
            self.names[number]: (tuple(self.shapes[number]), self.dtypes[parameter])
            for number, parameter in zip(numbers, self.rows["parameter"][first], strict=True)
        }

    def pack(self) -> bytes:
        """The table as bytes for the wire. Raises ValueError for a parameter whose dtype is not in DTYPES."""
        wire = _Wire(
            names=self.names,
            shapes=self.shapes,
            rows=self.rows.tobytes(),
            dtypes=[DTYPES.index(dtype) for dtype in self.dtypes],
        )
        return msgspec.msgpack.encode(wire)

    @classmethod
    def unpack(cls, data: bytes) -> Blocks:
        """The table from the bytes of `pack`. Raises msgspec.ValidationError for anything else."""
        wire = msgspec.msgpack.decode(data, type=_Wire)
        return cls(
            wire.names,
            wire.shapes,
            np.frombuffer(wire.rows, dtype=BLOCK),
            [DTYPES[code] for code in wire.dtypes],
        )


class _Wire(msgspec.Struct, array_like=True):
    names: list[str]
    shapes: list[tuple[int, ...]]
    rows: bytes
    dtypes: list[int]


def empty_blocks() -> Blocks:
    """The table of a rank that holds nothing (yet)."""
    return Blocks([], [], np.empty(0, BLOCK), [])


def padded(shape: Sequence[int], fill: int = 1) -> tuple[int, ...]:
    """`shape` with leading `fill`s, DIMS long. Raises ValueError for a longer shape."""
    if len(shape) > DIMS:
        raise ValueError(f"a tensor of shape {tuple(shape)} has more than {DIMS} dimensions")
    return (fill,) * (DIMS - len(shape)) + tuple(shape)


class BlockWriter:
    """Collects the rows of one rank's table."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._rows: list[tuple] = []

    def add(
        self,
        name: str,
        shape: Sequence[int],
        start: Sequence[int],
        parameter: int,
        view: torch.Tensor,
    ) -> None:
        """Adds the box of tensor `name` that begins at `start`; `view` is its memory and has its shape.

        `shape` is the whole tensor's, `parameter` the index of the parameter that `view` belongs to.
        """
        tensor = self._index.setdefault(name, len(self._index))
        if tensor == len(self._shapes):
            self._shapes.append(tuple(shape))
        self._rows.append(
            (
                tensor,
                padded(start, 0),
                padded(view.shape),
                parameter,
                view.storage_offset(),
                padded(view.stride(), 0),
            )
        )

    def blocks(self, dtypes: list[torch.dtype]) -> Blocks:
        """The finished table; `dtypes` are the parameters'."""
        return Blocks(list(self._index), self._shapes, np.array(self._rows, dtype=BLOCK), dtypes)


def joined(first: Blocks, second: Blocks) -> Blocks:
    """Joins two tables that have no tensor in common; the second's parameters are numbered after the first's."""
    rows = second.rows.copy()
    rows["tensor"] += len(first.names)
    rows["parameter"] += len(first.dtypes)
    return Blocks(
        first.names + second.names,
        first.shapes + second.shapes,
        np.concatenate([first.rows, rows]),
        first.dtypes + second.dtypes,
    )


def held_blocks(
    held: Iterable[tuple[LocalParameter, torch.Tensor]], but: Collection[str] = ()
) -> tuple[Blocks, list[torch.Tensor]]:
    """The table of a trainer rank that holds `held` (see `Bound.parameters`), and its parameters in the table's order.

    Tensors in `but` are left out of the table.
    """
    writer = BlockWriter()
    parameters: list[torch.Tensor] = []
    for local, parameter in held:
        for piece in (piece for piece in local.pieces if piece.hf not in but):
            start = [0] * len(piece.hf_shape)
            start[piece.dim] = piece.start
            view = piece.of(parameter.detach())
            for sub_start, sub_view in _boxes(view, piece.block_shape, start, piece.dim):
                writer.add(piece.hf, piece.hf_shape, sub_start, len(parameters), sub_view)
        parameters.append(parameter.detach())
    return writer.blocks([p.dtype for p in parameters]), parameters


def _boxes(
    view: torch.Tensor, shape: Sequence[int], start: list[int], dim: int
) -> list[tuple[list[int], torch.Tensor]]:
    """Cuts a view that reshapes to `shape` into boxes that each have one stride per dimension.

    One box is not always enough: in a fused qkv parameter the queries, keys and values of the groups interleave.
    """
    try:
        return [(start, view.view(tuple(shape)))]
    except RuntimeError:  # the dimensions to be merged cannot be expressed by one stride
        parts = len(view)
        length = shape[dim] // parts
        found = []
        for number, part in enumerate(view):
            at = list(start)
            at[dim] += number * length
            found += _boxes(part, (*shape[:dim], length, *shape[dim + 1 :]), at, dim)
        return found
