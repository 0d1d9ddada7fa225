"""What every format of an engine's weights has in common: names, shapes, slices, and the call that converts.

A format turns one Hugging Face tensor [rows, columns] into one or more *derived* tensors. How is a table of
`Output`s, so everything about geometry is pure arithmetic on it: what is derived from a tensor of a given
shape, and which slice of each derived tensor comes from a slice of the source. A tensor-parallel rank can thus
convert the slice it holds and get exactly the bytes that the whole tensor's conversion has there.

Formats with a number over the whole tensor (`two_phase`) want its largest absolute value first: each holder of
a slice calls `amax`, the results are reduced by max over all slices of all tensors of one `amax_group`, and
the result is given to `tensors`.

All arithmetic is float32, one rounding per operation, through torch operations that round correctly on CPU and
CUDA alike (see `rounding`), so both give the same bits. Do not run it under torch.compile, which may contract
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

_TOGETHER = (
    1 << 24
)  # elements converted at once: of these there are some float32 copies meanwhile, 64 MiB each


@dataclass(frozen=True)
class Output:
    """One derived tensor per source tensor.

    `suffix` stands where the source's name ends in "weight". `step` is how many source elements, by row and by
    column, one element of it comes from; None: the same for every slice of the source, of shape `fixed`.
    """

    suffix: str
    dtype: torch.dtype
    step: tuple[int, int] | None = None
    fixed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Derived:
    """A derived tensor of a named source."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Format(ABC):
    """How an engine wants its linear layers. Instances hold settings only."""

    name: ClassVar[str]
    two_phase: ClassVar[bool] = False
    # What a converter quantises unless told otherwise: all linear layers, or, of a model that has experts, those.
    covers: ClassVar[Literal["linear", "experts"]] = "linear"
    # How the engine reads the ignore list: see `selection`.
    ignore_style: ClassVar[Literal["path", "suffix"]] = "path"
    outputs: tuple[Output, ...]

    # ---- geometry

    def granularity(self) -> tuple[int, int]:
        """A slice of the source can be converted alone if it starts at a multiple of this, by row and column."""
        steps = [output.step for output in self.outputs if output.step is not None]
        return math.lcm(*(s[0] for s in steps)), math.lcm(*(s[1] for s in steps))

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raises ValueError when a tensor of this name and shape cannot be had in this format."""
        if not name.endswith("weight") or len(shape) != 2:
            raise ValueError(f"{name} {tuple(shape)} is not the weight of a linear layer [rows, columns]")

    def derived(self, name: str, shape: Sequence[int]) -> tuple[Derived, ...]:
        """The tensors made of a whole source tensor of this name and shape."""
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
        """Derived name -> the slice of it that comes from this slice of the source; None: the whole of it.

        Raises ValueError for a slice that ends or begins inside a block.
        """
        self.check(name, shape)
        grain = self.granularity()[dim]
        end = start + length
        if not (0 <= start < end <= shape[dim]):
            raise ValueError(f"{name} {tuple(shape)} has no slice {start}:{end} along dimension {dim}")
        if start % grain or (end % grain and end != shape[dim]):
            raise ValueError(
                f"{name}: slice {start}:{end} of dimension {dim} cuts a block of {self.name}; "
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
        """Largest absolute value of a block, float32 scalar; to be reduced by max over the slices of a group."""
        return block.abs().amax().float() if block.numel() else block.new_zeros((), dtype=torch.float32)

    def amax_group(self, name: str) -> str:
        """Tensors of one group share one amax: the engine fuses them and has room for one scale."""
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
        """Converts a block of the source, which may be all of it; bfloat16, float16 or float32 on any device.

        `shape` is the whole source's (by default the block's), `amax` the group's where the format is
        `two_phase` (by default the block's own). Returns contiguous tensors on the block's device, by name.
        Raises ValueError for a block with an infinity or a NaN, naming the tensor.
        """

    def several(self, sources: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`tensors` of each of these whole sources, with few kernels: experts are many and small.

        For formats that are not `two_phase`. Results may be views of one another's memory. Raises what `tensors` does.
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
        """Of sources of one shape, whole blocks high: no block has rows of two."""
        first, *others = sources
        rows, columns = sources[first].shape
        try:
            together = self.tensors(
                first, torch.cat(list(sources.values())) if others else sources[first], shape=(rows, columns)
            )
        except ValueError:
            for name, source in sources.items():  # says which it is
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
        """The bfloat16 tensor that derived tensors, given by suffix, stand for."""

    @abstractmethod
    def config(self, ignore: Sequence[str]) -> dict[str, Any] | None:
        """config.json's `quantization_config`, as SGLang reads it; `ignore` as in `selection`."""

    def name_of(self, name: str, suffix: str) -> str:
        """The derived tensor's name."""
        return name.removesuffix("weight") + suffix

    def _named(self, name: str, output: Output) -> str:
        return self.name_of(name, output.suffix)
