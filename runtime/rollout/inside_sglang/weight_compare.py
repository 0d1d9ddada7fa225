"""Compares a served model's parameters with a trainer's, bit for bit, without changing them.

The model's own `load_weights` runs on the trainer's tensors, while every write into a parameter becomes a comparison
with the parameter's value. So names, fusions (q, k, v into one tensor), expert numbering and tensor-parallel slices are
those of the engine itself. Parameters with elements that were never compared are reported, so a loader that skips a
tensor is found out.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NAMES_KEPT = 20  # names of each kind in a report; the counts are complete
# Parts of the names of parameters that keep the checkpoint's values (`Family.frozen`) and are never sent.
_LEFT_AS_LOADED = (".e_score_correction_bias", ".self_attn.indexer.")


def left_as_loaded(name: str) -> bool:
    """Whether the engine's parameter of this name always keeps its checkpoint's values."""
    return any(part in name for part in _LEFT_AS_LOADED)


class Comparison(msgspec.Struct, kw_only=True):
    """The result of comparing one bucket, over all engine ranks. The last bucket's also covers the whole model."""

    tensors: int  # the trainer's tensors that were compared
    elements: int
    unequal_tensors: int = 0
    unequal: list[str] = []  # the first few names, with their counts of unequal elements
    # Only with the last bucket:
    uncovered_parameters: int = 0
    uncovered: list[str] = []  # engine parameters with elements that no tensor of any bucket covered

    @property
    def equal(self) -> bool:
        """Whether nothing differs and, after the last bucket, nothing was left out."""
        return self.unequal_tensors == 0 and self.uncovered_parameters == 0


class WeightComparer:
    """One comparison of a whole model, bucket by bucket."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._covered = {
            tensor.untyped_storage().data_ptr(): _Parameter(name, tensor)
            for name, tensor in model.named_parameters()
            if not left_as_loaded(name)
        }
        self._unequal: dict[str, int] = {}
        self._elements = 0
        self._current = ""
        self._touched: set[str] = set()

    @torch.no_grad()
    def compare(self, bucket: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Compares one bucket of Hugging Face tensors."""
        with _in_this_thread(), _WritesBecomeComparisons(self):
            self._model.load_weights(self._named(bucket))  # type: ignore[operator]

    @property
    def compared(self) -> list[str]:
        """Names of the tensors of which at least one element was compared since the last report."""
        return sorted(self._touched)

    def report(self, last: bool) -> Comparison:
        """The result for the buckets since the last report; with `last`, also the parameters that none covered."""
        holes = [text for p in self._covered.values() if (text := p.hole())] if last else []
        names = [f"{name}: {count} elements" for name, count in sorted(self._unequal.items())]
        report = Comparison(
            tensors=len(self._touched),
            elements=self._elements,
            unequal_tensors=len(names),
            unequal=names[:_NAMES_KEPT],
            uncovered_parameters=len(holes),
            uncovered=holes[:_NAMES_KEPT],
        )
        self._unequal, self._elements, self._touched = {}, 0, set()
        return report

    def _named(self, bucket: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        # Loaders consume one tensor after another, so a write belongs to the name handed out last.
        for name, tensor in bucket:
            self._current = name
            yield name, tensor

    def parameter_of(self, tensor: torch.Tensor) -> _Parameter | None:
        """The parameter that `tensor` is a view of."""
        return self._covered.get(tensor.untyped_storage().data_ptr())

    def compare_write(self, parameter: _Parameter, target: torch.Tensor, source: Any) -> None:
        """Compares the values that a write would put into `target` with its current values."""
        if not isinstance(source, torch.Tensor):
            source = torch.tensor(source, dtype=target.dtype)
        wanted = source.to(device=target.device, dtype=target.dtype).expand(target.shape)
        unequal = int((_bits(target) != _bits(wanted)).sum())
        if unequal:
            self._unequal[self._current] = self._unequal.get(self._current, 0) + unequal
        parameter.cover(target)
        self._elements += target.numel()
        self._touched.add(self._current)


class _Parameter:
    """One engine parameter, and the elements of it that have been compared."""

    def __init__(self, name: str, tensor: torch.Tensor) -> None:
        self._name = name
        self._first = int(tensor.storage_offset())
        self._elements = tensor.numel()
        self._intervals: list[tuple[int, int]] = []  # in elements of the storage

    def cover(self, view: torch.Tensor) -> None:
        self._intervals += _runs(list(view.shape), list(view.stride()), int(view.storage_offset()))

    def hole(self) -> str | None:
        """A text that says how many elements were not covered, or None if all were."""
        covered, reached = 0, self._first
        for start, end in sorted(self._intervals):
            if end > reached:
                covered += end - max(start, reached)
                reached = end
        missing = self._elements - covered
        return f"{self._name}: {missing} of {self._elements} elements" if missing else None


def _runs(shape: list[int], stride: list[int], offset: int) -> list[tuple[int, int]]:
    """The contiguous storage intervals that a view consists of."""
    if 0 in shape:
        return []
    sides = sorted(((st, sh) for sh, st in zip(shape, stride, strict=True) if sh > 1))
    run = 1
    while sides and sides[0][0] == run:
        run *= sides.pop(0)[1]
    starts = [offset]
    for step, count in sides:
        starts = [start + step * i for start in starts for i in range(count)]
    return [(start, start + run) for start in starts]


@contextlib.contextmanager
def _in_this_thread() -> Iterator[None]:
    """Runs a loader's thread-pool work in this thread, because a dispatch mode only sees its own thread."""
    pool = concurrent.futures.ThreadPoolExecutor
    concurrent.futures.ThreadPoolExecutor = _Inline  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        concurrent.futures.ThreadPoolExecutor = pool  # type: ignore[misc]


class _Inline(concurrent.futures.Executor):
    """An executor without threads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        done.set_result(fn(*args, **kwargs))
        return done


class _WritesBecomeComparisons(TorchDispatchMode):
    def __init__(self, comparer: WeightComparer) -> None:
        super().__init__()
        self._comparer = comparer

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write or place >= len(args):
                continue
            parameter = self._comparer.parameter_of(args[place])
            if parameter is None:
                continue
            name = func._schema.name
            if name == "aten::zero_":
                self._comparer.compare_write(parameter, args[0], 0)
            elif name in ("aten::copy_", "aten::fill_"):
                self._comparer.compare_write(parameter, args[0], args[1])
            else:
                raise NotImplementedError(
                    f"{self._comparer._current}: its loader writes with {name}, which cannot be compared"
                )
            return args[0]
        return func(*args, **kwargs)


_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(_INTEGER[tensor.element_size()])
