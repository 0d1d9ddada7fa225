"""The interface of a weight format: derived names, shapes and slices, and the conversion itself.

A format turns one Hugging Face tensor [rows, columns] into one or more *derived* tensors, described by a table of
`Output`s. All geometry is pure arithmetic on this table: the derived tensors of a source of a given shape, and the
slice of each derived tensor that comes from a slice of the source. So a tensor-parallel rank can convert the slice
that it holds, and gets exactly the bytes that the conversion of the whole tensor has there.

Some formats have one scale for the whole tensor (`two_phase`) and need its largest absolute value first. Each holder
of a slice calls `amax`, the results are reduced by max over all slices of all tensors of one `amax_group`, and the
result is passed to `tensors`.

All arithmetic is in float32, with one rounding per operation, and uses only torch operations that round correctly on
both CPU and CUDA (see `rounding.py`), so both give the same bits. Do not run it under torch.compile, which may contract
a product and a sum into one rounding, nor with `torch.set_flush_denormal(True)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

Slice = tuple[int, int, int]  # dimension, start, length

_TOGETHER = 1 << 24  # elements converted at once; this takes a few temporary float32 copies of 64 MiB each


@dataclass(frozen=True)
class Output:
    """Describes one of the derived tensors that a source tensor gives.

    `suffix` replaces the "weight" at the end of the source's name. `step` is the number of source rows and columns that
    one element is derived from. None: the tensor has the shape `fixed` and is the same for every slice of the source.
    """

    suffix: str
    dtype: torch.dtype
    step: tuple[int, int] | None = None
    fixed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Derived:
    """Name, shape and dtype of a derived tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Format(ABC):
    """An engine's format for linear layers. Instances hold settings only."""

    name: ClassVar[str]
    two_phase: ClassVar[bool] = False
    # The layers that are quantised by default: all linear layers, or only the experts if the model has any.
    covers: ClassVar[Literal["linear", "experts"]] = "linear"
    # How the engine reads the ignore list: see `selection.py`.
    ignore_style: ClassVar[Literal["path", "suffix"]] = "path"
    outputs: tuple[Output, ...]

    # ---- geometry

    def granularity(self) -> tuple[int, int]:
        """The block size (rows, columns). A slice of the source can be converted alone if it starts at a multiple."""
        steps = [output.step for output in self.outputs if output.step is not None]
        return math.lcm(*(s[0] for s in steps)), math.lcm(*(s[1] for s in steps))

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raises ValueError if a tensor of this name and shape cannot be converted to this format."""
        if not name.endswith("weight") or len(shape) != 2:
            raise ValueError(f"{name} {tuple(shape)} is not the weight of a linear layer [rows, columns]")

    def derived(self, name: str, shape: Sequence[int]) -> tuple[Derived, ...]:
        """The derived tensors of a whole source tensor of this name and shape."""
        self.check(name, shape)
        rows, columns = shape
        return tuple(
            Derived(
                self._named(name, output),
                output.fixed
                if output.step is None
                else (math.ceil(rows / output.step[0]), math.ceil(columns / output.step[1])),
                output.dtype,
            )
            for output in self.outputs
        )

    def cut(
        self, name: str, shape: Sequence[int], dim: int, start: int, length: int
    ) -> dict[str, Slice | None]:
        """For each derived name, the slice that comes from this slice of the source; None: the whole derived tensor.

        Raises ValueError for a slice that begins or ends inside a block.
        """
        self.check(name, shape)
        grain = self.granularity()[dim]
        end = start + length
        if not (0 <= start < end <= shape[dim]):
            raise ValueError(f"{name} {tuple(shape)} has no slice {start}:{end} along dimension {dim}")
        if start % grain or (end % grain and end != shape[dim]):
            raise ValueError(
                f"{name}: slice {start}:{end} of dimension {dim} cuts through a block of {self.name}; "
                f"it must begin and end at multiples of {grain}, or at the tensor's end ({shape[dim]})"
            )
        cuts: dict[str, Slice | None] = {}
        for output in self.outputs:
            if output.step is None:
                cuts[self._named(name, output)] = None
            else:
                step = output.step[dim]
                first, last = start // step, math.ceil(end / step)
                cuts[self._named(name, output)] = (dim, first, last - first)
        return cuts

    # ---- conversion

    def amax(self, block: torch.Tensor) -> torch.Tensor:
        """Largest absolute value of a block, a float32 scalar. The caller reduces it by max over a group's slices."""
        return block.abs().amax().float() if block.numel() else block.new_zeros((), dtype=torch.float32)

    def amax_group(self, name: str) -> str:
        """The group that a tensor belongs to. A group shares one amax, because the engine fuses it under one scale."""
        return name

    @abstractmethod
    def tensors(
        self,
        name: str,
        block: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        amax: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Converts a block of the source, or all of it: bfloat16, float16 or float32, on any device.

        `shape` is the whole source's (by default the block's). `amax` is the group's, if the format is `two_phase` (by
        default the block's own). Returns contiguous tensors on the block's device, by name. Raises ValueError with the
        tensor's name if the block holds an infinity or a NaN.
        """

    def several(self, sources: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Converts several whole sources as `tensors` does, but with few kernels, since experts are many and small.

        Only for formats that are not `two_phase`. The results may share memory. Raises the same errors as `tensors`.
        """
        rows_of_a_block, _ = self.granularity()
        alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name, source in sources.items():
            self.check(name, source.shape)
            alone = name if source.shape[0] % rows_of_a_block else ""
            alike[source.shape, source.dtype, source.device, alone].append(name)
        made: dict[str, torch.Tensor] = {}
        for (shape, *_), names in alike.items():
            most = max(1, _TOGETHER // max(1, shape.numel()))
            for start in range(0, len(names), most):
                made |= self._stacked({name: sources[name] for name in names[start : start + most]})
        return made

    def _stacked(self, sources: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Converts sources of one shape stacked on top of each other.

        Either there is only one, or their height is a multiple of the block's: no block may have rows of two sources.
        """
        first, *others = sources
        rows, columns = sources[first].shape
        try:
            together = self.tensors(
                first, torch.cat(list(sources.values())) if others else sources[first], shape=(rows, columns)
            )
        except ValueError:
            for name, source in sources.items():  # one by one: the error then names the right source
                self.tensors(name, source)
            raise
        made: dict[str, torch.Tensor] = {}
        for output in self.outputs:
            whole = together[self._named(first, output)]
            parts = whole.chunk(len(sources)) if output.step else [whole] * len(sources)
            made |= {self._named(name, output): part for name, part in zip(sources, parts, strict=True)}
        return made

    @abstractmethod
    def restore(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Restores the bfloat16 tensor from its derived tensors, which are given by suffix."""

    @abstractmethod
    def config(self, ignore: Sequence[str]) -> dict[str, Any] | None:
        """The `quantization_config` for config.json, as SGLang reads it; for `ignore` see `selection.py`."""

    def name_of(self, name: str, suffix: str) -> str:
        """The name of the derived tensor with this suffix."""
        return name.removesuffix("weight") + suffix

    def _named(self, name: str, output: Output) -> str:
        return self.name_of(name, output.suffix)
