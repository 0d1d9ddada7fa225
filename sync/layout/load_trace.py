"""Where a model's own loader puts each element of a checkpoint: an engine's table of blocks, found by asking.

`load_weights` is run once on tensors without data. Each is a tensor subclass that remembers from which
Hugging Face tensor it was cut; a write of one into a parameter is noted and not done. So fusions (q, k, v
into one parameter), expert numbering and tensor-parallel slices are the engine's own, for every model that
it can load, and its loader may use threads. What it sets to zero is padding (SGLang pads to the vector width
on a CPU, and the vocabulary everywhere): no weight's, so nobody sends it. What a loader computes from a
weight has no place to send it to: that is an error, and such a model takes whole tensors (`transport:
broadcast`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from verst.sync.layout.blocks import Blocks, BlockWriter

_COPIES = ("aten::_to_copy", "aten::clone", "aten::contiguous")


class TraceError(RuntimeError):
    """The loader does something with a tensor that moving its blocks cannot reproduce."""


@dataclass(frozen=True)
class _Leaf:
    """A whole Hugging Face tensor."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Joined:
    """A tensor made by copying others side by side: each with the place where it begins."""

    shape: tuple[int, ...]
    parts: tuple[tuple[tuple[int, ...], _Traced], ...]


class _Traced(torch.Tensor):
    """A tensor without data that knows where it comes from; `meta` has its place in that."""

    meta: torch.Tensor
    origin: _Leaf | _Joined

    @staticmethod
    def __new__(cls, meta: torch.Tensor, origin: _Leaf | _Joined, device: torch.device) -> _Traced:
        traced = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), dtype=meta.dtype, device=device
        )
        traced.meta, traced.origin = meta, origin
        return traced

    def __repr__(self) -> str:  # type: ignore[override]
        return f"_Traced({self.origin}, {tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name
        if name == "aten::copy_":
            return _write(args[0], args[1])
        if name == "aten::cat":
            return _cat(list(args[0]), args[1] if len(args) > 1 else 0)
        if name == "aten::stack":
            raise TraceError(f"{args[0][0]}: stacked; its loader cannot be followed")
        source = next(a for a in args if isinstance(a, cls))
        result = func(
            *tree_map_only(cls, lambda t: t.meta, args),
            **{k: v for k, v in (kwargs or {}).items() if k not in ("device", "non_blocking", "pin_memory")},
        )
        if name in _COPIES:
            begin = (0,) * source.dim()
            joined = _Joined(tuple(source.shape), ((begin, source),))
            return cls(torch.empty(source.shape, dtype=result.dtype, device="meta"), joined, source.device)
        if not func.is_view:
            raise TraceError(f"{source}: its loader computes {name} from it")
        if name == "aten::view" and result.dtype != source.dtype:
            raise TraceError(f"{source}: its loader reads its bits as {result.dtype}")
        return tree_map_only(torch.Tensor, lambda t: cls(t, source.origin, source.device), result)


def trace_load(
    model: torch.nn.Module,
    tensors: Mapping[str, tuple[Sequence[int], torch.dtype]],
    left_alone: Callable[[str], bool] = lambda name: False,
) -> tuple[Blocks, list[torch.Tensor]]:
    """The blocks of `tensors` (shape and dtype by Hugging Face name) in `model`, and the model's parameters.

    Every parameter must be covered exactly once, but padding and those whose names are `left_alone`. Raises
    TraceError naming what is not, and what the loader does that cannot be followed. The model is not changed, but
    that its padding is zero afterwards.
    """
    parameters = dict(model.named_parameters())
    recorder = _Recorder(parameters)
    _recorders.append(recorder)
    try:
        with torch.no_grad(), _Zeroing(recorder):
            model.load_weights(_sources(tensors))  # type: ignore[operator]
    finally:
        _recorders.remove(recorder)
    recorder.require_full_cover(left_alone)
    recorder.zero_padding()
    values = [p.detach() for p in parameters.values()]
    return recorder.writer.blocks([p.dtype for p in values]), values


def _sources(
    tensors: Mapping[str, tuple[Sequence[int], torch.dtype]],
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, (shape, dtype) in tensors.items():
        meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
        # "cpu" is where loaders expect what comes from a file.
        yield name, _Traced(meta, _Leaf(name, tuple(shape)), torch.device("cpu"))


class _Recorder:
    """What was written where, and what was set to zero, in intervals of each parameter's storage."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.writer = BlockWriter()
        self._parameters = parameters
        self._number = {
            p.untyped_storage().data_ptr(): number for number, p in enumerate(parameters.values())
        }
        self._written: dict[int, list[tuple[int, int]]] = {}
        self._zeroed: dict[int, list[tuple[int, int]]] = {}

    def note(self, target: torch.Tensor, name: str, shape: Sequence[int], start: Sequence[int]) -> None:
        number = self._number_of(target)
        if number is None:
            raise TraceError(f"{name}: its loader writes to a tensor that is no parameter of the model")
        self.writer.add(name, shape, start, number, target)
        self._written.setdefault(number, []).extend(storage_runs(target))

    def note_zero(self, target: torch.Tensor) -> bool:
        """Whether `target` is of a parameter."""
        number = self._number_of(target)
        if number is not None:
            self._zeroed.setdefault(number, []).extend(storage_runs(target))
        return number is not None

    def require_full_cover(self, left_alone: Callable[[str], bool]) -> None:
        faults = []
        for number, (name, parameter) in enumerate(self._parameters.items()):
            begin = parameter.storage_offset()
            written = sorted(self._written.get(number, []))
            twice = next((b[0] for a, b in pairwise(written) if b[0] < a[1]), None)
            if twice is not None:
                faults.append(f"{name} is written twice from element {twice - begin} on")
                continue
            zeroed = self._zeroed.get(number, [])
            missing = parameter.numel() - _covered(written + zeroed)
            if missing and (written or zeroed or not left_alone(name)):
                faults.append(f"{name}: {missing} elements get nothing")
        if faults:
            shown = "; ".join(faults[:10] + ([f"and {len(faults) - 10} more"] if len(faults) > 10 else []))
            raise TraceError(f"the engine's parameters are not covered exactly once: {shown}")

    def zero_padding(self) -> None:
        """Zeroes what the loader zeroes and does not fill."""
        for number, parameter in enumerate(self._parameters.values()):
            storage = parameter.detach().as_strided(
                (parameter.untyped_storage().nbytes() // parameter.itemsize,), (1,), 0
            )
            for start, end in _outside(self._zeroed.get(number, []), self._written.get(number, [])):
                storage[start:end].zero_()

    def _number_of(self, target: torch.Tensor) -> int | None:
        return self._number.get(target.untyped_storage().data_ptr())


def _covered(intervals: Iterable[tuple[int, int]]) -> int:
    """How many numbers lie in any of them."""
    total = reached = 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _outside(intervals: list[tuple[int, int]], others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of `intervals` lies in none of `others`."""
    others = sorted(others)
    for start, end in intervals:
        first = bisect_right(others, start, key=lambda o: o[1])
        for low, high in (others[i] for i in range(first, len(others))):
            if low >= end:
                break
            if start < low:
                yield start, low
            start = max(start, high)
        if start < end:
            yield start, end


class _Zeroing(TorchDispatchMode):
    """Notes what a loader sets to zero in a parameter, in place of doing it.

    Of the calling thread alone: what a thread of the loader's zeroes is not seen, and so refused.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name
        zero = name == "aten::zero_" or (
            name == "aten::fill_" and not isinstance(args[1], torch.Tensor) and args[1] == 0
        )
        if zero and self._recorder.note_zero(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))


_recorders: list[_Recorder] = []  # of the trace in progress; loaders may write from threads of their own


def _write(target: torch.Tensor, source: Any) -> torch.Tensor:
    if isinstance(target, _Traced) or not isinstance(source, _Traced):
        raise TraceError(
            f"{source if isinstance(source, _Traced) else target}: written into a checkpoint tensor"
        )
    if target.shape != source.shape:
        source = source.expand(target.shape)
    for name, shape, start, part in _leaves(target.detach(), source):
        _recorders[-1].note(part, name, shape, start)
    return target


def _leaves(
    target: torch.Tensor, source: _Traced
) -> Iterator[tuple[str, Sequence[int], Sequence[int], torch.Tensor]]:
    """Follows `source` to the Hugging Face tensors: name, shape, box start, and the part of `target`."""
    start, order = _box_of(source)
    shape = source.origin.shape
    # The target with the dimensions of the origin, in its order.
    length, strides = [1] * len(shape), [0] * len(shape)
    wide = ((n, stride) for n, stride in zip(target.shape, target.stride(), strict=True) if n > 1)
    for dim, (n, stride) in zip(order, wide, strict=True):
        length[dim], strides[dim] = n, stride
    place = target.as_strided(length, strides, target.storage_offset())
    if isinstance(source.origin, _Leaf):
        yield source.origin.name, shape, start, place
        return
    for begin, part in source.origin.parts:
        low = [max(s, b) for s, b in zip(start, begin, strict=True)]
        high = [min(s + n, b + m) for s, n, b, m in zip(start, length, begin, part.shape, strict=True)]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        cut_target, cut_source = place, part
        for dim, (a, b) in enumerate(zip(low, high, strict=True)):
            cut_target = cut_target.narrow(dim, a - start[dim], b - a)
            cut_source = cut_source.narrow(dim, a - begin[dim], b - a)  # type: ignore[assignment]
        yield from _leaves(cut_target, cut_source)


def _box_of(source: _Traced) -> tuple[list[int], list[int]]:
    """Where a view begins in its origin, and which of its dimensions the view's are that are longer than 1."""
    shape = source.origin.shape
    strides = _contiguous_strides(shape)
    offset = source.meta.storage_offset()
    start = []
    for stride in strides:
        start.append(offset // stride if stride else 0)
        offset -= start[-1] * stride
    by_stride = {stride: dim for dim, (stride, n) in enumerate(zip(strides, shape, strict=True)) if n > 1}
    order = []
    for n, stride in zip(source.meta.shape, source.meta.stride(), strict=True):
        if n > 1:
            dim = by_stride.get(stride)
            if dim is None or start[dim] + n > shape[dim]:
                raise TraceError(f"{source}: its loader reshapes it in a way that cannot be followed")
            order.append(dim)
    return start, order


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return strides[::-1]


def _cat(sources: list[Any], dim: int) -> _Traced:
    traced = [s for s in sources if isinstance(s, _Traced)]
    if len(traced) != len(sources):
        raise TraceError(f"{traced[0]}: its loader joins it with a tensor that is not from the checkpoint")
    first = traced[0]
    dim %= first.dim()
    parts, at = [], 0
    for source in traced:
        parts.append((tuple(at if d == dim else 0 for d in range(first.dim())), source))
        at += source.shape[dim]
    shape = tuple(at if d == dim else n for d, n in enumerate(first.shape))
    meta = torch.empty(shape, dtype=first.dtype, device="meta")
    return _Traced(meta, _Joined(shape, tuple(parts)), first.device)


def storage_runs(view: torch.Tensor) -> Iterable[tuple[int, int]]:
    """The contiguous intervals of its storage, in elements, that a view consists of."""
    if view.numel() == 0:
        return []
    sides = sorted((st, n) for n, st in zip(view.shape, view.stride(), strict=True) if n > 1)
    run = 1
    while sides and sides[0][0] == run:
        run *= sides.pop(0)[1]
    starts = [int(view.storage_offset())]
    for step, count in sides:
        starts = [start + step * i for start in starts for i in range(count)]
    return [(start, start + run) for start in starts]
