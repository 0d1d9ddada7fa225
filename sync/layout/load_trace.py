"""Finds an engine's table of blocks by tracing where the model's own loader puts each element of a checkpoint.

`load_weights` runs once on tensors without data. Each is an instance of a tensor subclass that remembers from which
Hugging Face tensor it was cut. A write of such a tensor into a parameter is recorded instead of done. So fusions
(q, k, v into one parameter), expert numbering and tensor-parallel slices are the engine's own, for every model that
it can load. The loader may use threads.

Elements that the loader sets to zero are padding: SGLang pads the vocabulary, and on a CPU also to the vector width.
They belong to no weight, so nobody sends them. A value that the loader computes from a weight cannot be traced to a
block: that is an error, and such a model needs whole tensors (`transport: broadcast`).
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from verst.sync.layout.blocks import Blocks, BlockWriter

_COPIES = ("aten::_to_copy", "aten::clone", "aten::contiguous")


class TraceError(RuntimeError):
    """The loader does something with a tensor that cannot be reproduced by moving blocks."""


@dataclass(frozen=True)
class _Leaf:
    """A whole Hugging Face tensor."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Joined:
    """A tensor made by copying others side by side: each part with the index where it begins."""

    shape: tuple[int, ...]
    parts: tuple[tuple[tuple[int, ...], _Traced], ...]


class _Traced(torch.Tensor):
    """A tensor without data that knows its origin; `meta` has its offset and strides in the origin."""

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
            raise TraceError(f"{args[0][0]}: its loader stacks it, which cannot be followed")
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
    """Traces the loading of `tensors` (shape and dtype by Hugging Face name) into `model`.

    Returns the table of blocks and the model's parameters. Every element of every parameter must be written exactly
    once, except padding and the parameters whose names are `left_alone`; otherwise raises TraceError with their
    names. Also raises TraceError if the loader does something that cannot be followed. The model keeps its values,
    except that its padding is zeroed.
    """
    parameters = dict(model.named_parameters())
    recorder = _Recorder(parameters)
    _recorders.append(recorder)
    try:
        with torch.no_grad(), _Zeroing(recorder), _zeroing_in_pools(recorder):
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
        # Loaders expect tensors from a file to be on the CPU.
        yield name, _Traced(meta, _Leaf(name, tuple(shape)), torch.device("cpu"))


class _Recorder:
    """Records what the loader writes and what it zeroes, as intervals of each parameter's storage."""

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
        """Records that `target` is zeroed, if it is part of a parameter; returns whether it is."""
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
                faults.append(f"{name}: {missing} elements are not written")
        if faults:
            shown = "; ".join(faults[:10] + ([f"and {len(faults) - 10} more"] if len(faults) > 10 else []))
            raise TraceError(f"the engine's parameters are not covered exactly once: {shown}")

    def zero_padding(self) -> None:
        """Zeroes the elements that the loader zeroes and does not fill afterwards."""
        for number, parameter in enumerate(self._parameters.values()):
            storage = parameter.detach().as_strided(
                (parameter.untyped_storage().nbytes() // parameter.itemsize,), (1,), 0
            )
            for start, end in _outside(self._zeroed.get(number, []), self._written.get(number, [])):
                storage[start:end].zero_()

    def _number_of(self, target: torch.Tensor) -> int | None:
        return self._number.get(target.untyped_storage().data_ptr())


def _covered(intervals: Iterable[tuple[int, int]]) -> int:
    """How many integers lie in at least one of the intervals."""
    total = reached = 0
    for start, end in sorted(intervals):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _outside(intervals: list[tuple[int, int]], others: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of `intervals` that lie in none of `others`."""
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
    """Records what a loader zeroes in a parameter, instead of zeroing it.

    This works in the thread that enters it. `_zeroing_in_pools` enters it in the tasks of thread pools. Elements zeroed
    in another thread of the loader are not seen, so they count as missing and the trace is refused.
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


@contextlib.contextmanager
def _zeroing_in_pools(recorder: _Recorder) -> Iterator[None]:
    """Records zeros in tasks of thread pools too: DeepSeek's loader pads its vocabulary in one."""
    submit = ThreadPoolExecutor.submit

    def submit_recorded(
        pool: ThreadPoolExecutor, task: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        def recorded() -> Any:
            with torch.no_grad(), _Zeroing(recorder):
                return task(*args, **kwargs)

        return submit(pool, recorded)

    with mock.patch.object(ThreadPoolExecutor, "submit", submit_recorded):
        yield


_recorders: list[
    _Recorder
] = []  # the trace in progress; a global, since loaders may write from their own threads


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
    """Follows `source` back to the Hugging Face tensors; yields name, shape, start of the box, part of `target`."""
    start, order = _box_of(source)
    shape = source.origin.shape
    # The target, with the origin's dimensions in the origin's order.
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
    """Where a view begins in its origin, and for each view dimension longer than 1 the origin's dimension."""
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
    """The contiguous intervals of the storage that a view consists of, in elements."""
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
