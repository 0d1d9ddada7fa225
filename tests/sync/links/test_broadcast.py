"""Broadcasts promise: whole tensors to the engines that answer, a reason in time for those that do not.

The receiving end is a process that joins as SGLang's own code does (`init_custom_process_group`).
"""

from __future__ import annotations

import ast
import importlib.util
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.sync.world import forked
from verst.sync.links import broadcast as whole
from verst.sync.links.broadcast import EngineGroup, broadcast
from verst.sync.wire.groups import EngineError, Source

TENSORS = [torch.arange(60.0).reshape(5, 12).t(), torch.ones(3, dtype=torch.bfloat16), torch.zeros(1 << 20)]


def _sglangs_init() -> Any:
    """SGLang's own function, cut from its file: importing the whole of SGLang takes half a minute."""
    path = Path(importlib.util.find_spec("sglang").submodule_search_locations[0]) / "srt/utils/common.py"  # type: ignore[union-attr, index]
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "init_custom_process_group":
            scope: dict[str, Any] = {"torch_release": (2, 11)}
            exec(compile(ast.Module([node], []), str(path), "exec"), scope)
            return scope[node.name]
    raise AssertionError(f"{path} has no init_custom_process_group")


def _engine(host: str, port: int, name: str, rank: int, size: int, buckets: int, outcome: Any) -> None:
    group = _sglangs_init()(
        backend="gloo", init_method=f"tcp://{host}:{port}", world_size=size, rank=rank, group_name=name
    )
    for _ in range(buckets):
        received = [torch.full(t.shape, -1, dtype=t.dtype) for t in TENSORS]
        handles = [torch.distributed.broadcast(t, src=0, group=group, async_op=True) for t in received]
        for handle in handles:
            handle.wait()
        outcome.put([float(t.double().sum()) for t in received])
        if not all(torch.equal(a, b) for a, b in zip(received, TENSORS, strict=True)):
            outcome.put("unequal")
    time.sleep(60)  # like an engine that answered with a refusal: alive, and never in the next collective


class Engines:
    """Starts receiving processes and ends them with the test."""

    def __init__(self) -> None:
        self.processes: list[Any] = []
        self.outcome = forked().Queue()

    def start(self, source: Source, name: str, ranks: int = 1, buckets: int = 1) -> None:
        self.start_at(source.host, source.port, name, ranks, buckets)

    def start_at(self, host: str, port: int, name: str, ranks: int = 1, buckets: int = 1) -> None:
        for rank in range(1, ranks + 1):
            args = (host, port, name, rank, ranks + 1, buckets, self.outcome)
            self.processes.append(forked().Process(target=_engine, args=args, daemon=True))
            self.processes[-1].start()


@pytest.fixture
def engines() -> Iterator[Engines]:
    started = Engines()
    yield started
    for process in started.processes:
        process.kill()
        process.join()


def well() -> None:
    return None


def connect(source: Source, name: str, ranks: int = 1) -> EngineGroup:
    return whole.connect(source, f"engine {name}", name, ranks, "gloo", 90, well)


def test_every_rank_of_two_engines_receives_the_tensors_and_one_that_goes_silent_is_left_out(
    engines: Engines,
) -> None:
    source = Source("127.0.0.1")
    engines.start(source, "a", ranks=2, buckets=2)
    engines.start(source, "b", buckets=1)
    groups = {0: connect(source, "a", 2), 1: connect(source, "b")}
    answers = {0: well, 1: well}
    assert broadcast(groups, TENSORS, time.monotonic() + 30, answers) == {}
    sums = [float(t.double().sum()) for t in TENSORS]
    assert [engines.outcome.get(timeout=30) for _ in range(3)] == [sums] * 3

    refused_at = time.monotonic() + 0.5
    answers[1] = lambda: "HTTP 400: shape mismatch" if time.monotonic() > refused_at else None  # type: ignore[assignment,return-value]
    started = time.monotonic()
    reasons = broadcast(groups, TENSORS, started + 30, answers)
    assert list(reasons) == [1]
    assert reasons[1].startswith("engine b: failed while broadcasting 3 tensors: HTTP 400: shape mismatch")
    assert time.monotonic() - started < 5
    assert [engines.outcome.get(timeout=30) for _ in range(2)] == [sums] * 2

    # Now engine a is silent too, and nothing is said about why: the deadline ends it.
    started = time.monotonic()
    reasons = broadcast(groups, TENSORS, started + 0.7, answers)
    assert 0.6 < time.monotonic() - started < 5
    assert reasons[0].startswith("engine a: broadcasting 3 tensors took longer than ")
    assert reasons[1] == "engine b: its group was abandoned"


def test_an_engine_that_dies_is_reported(engines: Engines) -> None:
    source = Source("127.0.0.1")
    engines.start(source, "a", buckets=1)
    groups = {0: connect(source, "a")}
    assert broadcast(groups, TENSORS, time.monotonic() + 30, {0: well}) == {}
    engines.processes[0].kill()
    engines.processes[0].join()
    reasons = broadcast(groups, TENSORS, time.monotonic() + 30, {0: well})
    assert reasons[0].startswith("engine a: failed while broadcasting 3 tensors: ")


def test_an_engine_that_never_joins_is_given_up_at_the_deadline_or_at_its_refusal() -> None:
    source = Source("127.0.0.1")
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"engine 4: joining group x took longer than \d\.\d s"):
        whole.connect(source, "engine 4", "x", 1, "gloo", 0.5, well)
    with pytest.raises(EngineError, match=r"engine 4: failed while joining group y: HTTP 400"):
        whole.connect(source, "engine 4", "y", 1, "gloo", 60, lambda: "HTTP 400")
    assert time.monotonic() - started < 5


def test_the_store_listens_on_the_address_it_was_told_alone() -> None:
    source = Source("127.0.0.1")
    socket.create_connection(("127.0.0.1", source.port), timeout=5).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", source.port), timeout=5)
    with pytest.raises(OSError, match="assign"):
        Source("192.0.2.1")


@pytest.mark.long
def test_a_process_ends_by_itself_after_giving_up_engines(engines: Engines) -> None:
    """One that never joined and one that joined, lives, and takes part in nothing."""
    script = """
        import time, torch
        from verst.sync.links.broadcast import broadcast, connect
        from verst.sync.wire.groups import EngineError, Source
        source = Source("127.0.0.1")
        try:
            connect(source, "engine 0", "x", 1, "gloo", 600, lambda: "HTTP 400")
        except EngineError as error:
            print(error)
        print(source.port, flush=True)
        group = connect(source, "engine 1", "a", 1, "gloo", 60, lambda: None)
        refused_at = time.monotonic() + 0.3
        refuse = lambda: "HTTP 400" if time.monotonic() > refused_at else None
        print(broadcast({1: group}, [torch.zeros(1 << 20)], time.monotonic() + 600, {1: refuse})[1], flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "engine 0: failed while joining group x: HTTP 400\n"
        port = int(process.stdout.readline())
        engines.start_at("127.0.0.1", port, "a", buckets=0)
        assert process.stdout.readline() == "engine 1: failed while broadcasting 1 tensors: HTTP 400\n"
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()


def test_nccl_needs_the_settings_that_the_engine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_CUMEM_ENABLE", "1")
    with pytest.raises(EngineError, match=r"'NCCL_CUMEM_ENABLE': '1'"):
        whole.connect(Source("127.0.0.1"), "engine 0", "x", 1, "nccl", 5, well)


def test_no_thread_stays_behind_when_all_went_well_nor_when_a_group_was_abandoned(engines: Engines) -> None:
    def broadcasting() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("broadcasting")]

    source = Source("127.0.0.1")
    engines.start(source, "a", buckets=1)
    group = connect(source, "a")
    assert broadcast({0: group}, TENSORS, time.monotonic() + 30, {0: well}) == {}
    assert broadcasting() == []
    assert list(broadcast({0: group}, TENSORS, time.monotonic() + 0.3, {0: well})) == [0]
    time.sleep(2)
    assert broadcasting() == []
