"""The trace promises: every element of a loader's parameters, with the checkpoint element that it gets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from verst.sync.layout.load_trace import TraceError, trace_load

Load = Callable[[torch.nn.Module, str, torch.Tensor], None]


class Model(torch.nn.Module):
    def __init__(self, load: Load, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self._load = load
        for name, shape in shapes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.full(shape, -1.0)))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            self._load(self, name, tensor)


def assert_trace_equals_loading(model: Model, shapes: dict[str, tuple[int, ...]]) -> None:
    """Moving the traced blocks gives what the loader itself gives, for values that are all different."""
    traced, parameters = trace_load(model, {n: (s, torch.float32) for n, s in shapes.items()})
    assert all(((p == -1) | (p == 0)).all() for p in parameters), "tracing writes nothing but padding"
    begin = 0
    values = {}
    for name, shape in shapes.items():
        values[name] = torch.arange(begin, begin + torch.Size(shape).numel()).float().reshape(shape)
        begin += values[name].numel()
    for row in traced.rows:
        source = values[traced.names[row["tensor"]]]
        source = source.reshape((1,) * (3 - source.dim()) + source.shape)
        for dim in range(3):
            source = source.narrow(dim, int(row["start"][dim]), int(row["length"][dim]))
        place = parameters[row["parameter"]].as_strided(
            row["length"].tolist(), row["stride"].tolist(), int(row["offset"])
        )
        place.copy_(source)
    moved = [p.clone() for p in parameters]
    for p in parameters:
        p.fill_(-1)
    model.load_weights(values.items())
    assert all(torch.equal(a, b.detach()) for a, b in zip(moved, model.parameters(), strict=True))


def test_slices_fusions_and_transposes_are_followed() -> None:
    def load(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
        if name == "embed":
            model.embed.data[:5].copy_(tensor.narrow(0, 5, 5))
            model.embed.data[5:].copy_(tensor[:3])
        elif name in ("q", "k"):
            at = {"q": 0, "k": 4}[name]
            model.qk.data.narrow(0, at, 4).copy_(tensor.chunk(2, dim=0)[1])
        elif name.startswith("expert"):
            model.experts.data[int(name[-1])].copy_(tensor.t().to(torch.bfloat16).contiguous())
        else:
            model.norm.data.copy_(tensor)

    model = Model(load, embed=(8, 3), qk=(8, 6), experts=(2, 4, 5), norm=(3,))
    shapes = {"embed": (10, 3), "q": (8, 6), "k": (8, 6), "expert0": (5, 4), "expert1": (5, 4), "norm": (3,)}
    assert_trace_equals_loading(model, shapes)


def test_tensors_that_the_loader_joins_and_cuts_again_are_followed() -> None:
    waiting: dict[str, torch.Tensor] = {}

    def load(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
        waiting[name] = tensor
        if len(waiting) == 2:
            joined = torch.cat([waiting.pop("a"), waiting.pop("b")], dim=0)
            model.w.data.copy_(joined[2:8, 1:])

    model = Model(load, w=(6, 3))
    assert_trace_equals_loading(model, {"a": (5, 4), "b": (4, 4)})


def test_what_the_loader_sets_to_zero_is_padding() -> None:
    def load(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
        if name == "down":  # its last columns and rows
            model.down.data.narrow(1, 3, 2).zero_()
            model.down.data[4:].fill_(0)
            model.down.data[:4, :3].copy_(tensor)
        else:  # zeroed as a whole, then filled in part: beside it a rank that holds nothing but padding
            model.up.data.zero_()
            model.up.data[2:4].copy_(tensor)
            model.none.data.zero_()

    model = Model(load, down=(6, 5), up=(6, 2), none=(3,))
    assert_trace_equals_loading(model, {"down": (4, 3), "up": (2, 2)})


def test_a_loader_may_write_from_threads() -> None:
    def load(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
        thread = threading.Thread(target=lambda: getattr(model, name).data.copy_(tensor[1:]))
        thread.start()
        thread.join()

    assert_trace_equals_loading(Model(load, a=(2, 3), b=(4,)), {"a": (3, 3), "b": (5,)})


def test_a_loader_may_pad_in_a_pool_of_threads() -> None:
    """As DeepSeek's does with a vocabulary that is no multiple of 64."""

    class Padded(Model):
        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            with ThreadPoolExecutor() as pool:
                tasks = [pool.submit(self._load, self, name, tensor=tensor) for name, tensor in weights]
                for task in tasks:
                    task.result()

    def load(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
        parameter = getattr(model, name)
        parameter.data[: len(tensor)].copy_(tensor)
        parameter.data[len(tensor) :].fill_(0)

    assert_trace_equals_loading(Padded(load, embed=(64, 3), head=(8, 2)), {"embed": (61, 3), "head": (5, 2)})


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda m, n, t: m.w.data.copy_(t + 1), r"computes aten::add from it"),
        (lambda m, n, t: m.w.data[:1].copy_(t[:1]), r"w: 4 elements are not written"),
        (
            lambda m, n, t: [m.w.data.copy_(t), m.w.data[1:].copy_(t[1:])],
            r"w is written twice from element 4 on",
        ),
        (lambda m, n, t: m.w.data.copy_(t.reshape(8).reshape(4, 2).t().reshape(2, 4)), r"cannot be followed"),
        (lambda m, n, t: torch.zeros(2, 4).copy_(t), r"no parameter of the model"),
    ],
)
def test_what_cannot_be_followed_is_named(load: Load, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace_load(Model(load, w=(2, 4)), {"x": ((2, 4), torch.float32)})


def test_what_is_left_alone_may_get_nothing_or_all() -> None:
    def left(name: str) -> bool:
        return name == "v"

    model = Model(lambda m, n, t: m.w.data.copy_(t), w=(2, 4), v=(3,))
    traced, _ = trace_load(model, {"x": ((2, 4), torch.float32)}, left)
    assert traced.names == ["x"]
    with pytest.raises(TraceError, match="w: 8 elements are not written"):
        trace_load(Model(lambda m, n, t: None, w=(2, 4), v=(3,)), {"x": ((2, 4), torch.float32)}, left)
    half = Model(lambda m, n, t: [m.w.data.copy_(t), m.v.data[:1].copy_(t[0, :1])], w=(2, 4), v=(3,))
    with pytest.raises(TraceError, match="v: 2 elements are not written"):
        trace_load(half, {"x": ((2, 4), torch.float32)}, left)
