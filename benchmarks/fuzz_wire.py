"""Coverage-guided fuzzing of what arrives at a member: `wire`, `codec` and the server's way of a message.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris==3.1.0 -c constraints.txt -e .
    /tmp/fuzz/bin/python -P benchmarks/fuzz_wire.py --seconds 300 --out benchmarks/results/fuzz_wire.json

atheris is no dependency of Verst: the default suite fuzzes with hypothesis (`tests/runtime/actors/test_fuzz*.py`).
A child process does the fuzzing, so that a crash of the interpreter is a result too. An input is decoded in three
ways: as bare frames for the decoders; as frames for a real `Server`; and as a good envelope whose body, method, call
number and so on the fuzzer chooses, so that it gets past the first checks. A crash is any exception but `Malformed`
out of the decoders, and any at all out of the server or its tasks. A hang is an input that takes more than a second
of computing; one that waits for a minute ends the child.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import atheris
import msgspec
import numpy as np
import zmq

with atheris.instrument_imports(include=["verst.runtime.actors.codec", "verst.runtime.actors"]):
    from verst.runtime.actors import codec, wire
    from verst.runtime.actors.actor import Actor, methods
    from verst.runtime.actors.link import Sender
    from verst.runtime.actors.security import Keys
    from verst.runtime.actors.server import Server
    from verst.runtime.actors.shared_memory import Reference
    from verst.runtime.actors.zmq_context import SocketContext

HANG_S = 1.0
MAX_INPUT_BYTES = 16_384
MAX_RSS_MB = 4096  # then libFuzzer ends the child, and that counts as a crash
KILL_S = 60  # for one input, likewise
_ROUTE = b"\0fuzz"
_KINDS = ["call", "call", "call", "cancel", "more", "taken", "reply", "error", "item"]


class Item(msgspec.Struct):
    """A struct with what wire types are made of."""

    name: str
    values: np.ndarray
    counts: dict[str, int] = {}
    more: list[np.ndarray] = []


class Target(Actor, concurrency=64, backlog=64):
    """Methods of every shape; none of them waits."""

    async def item(self, item: Item, factor: float = 1.0, *, name: str = "") -> Item:
        return item

    async def anything(self, value: Any) -> Any:
        return value

    async def union(self, value: int | str | list[Item] | None, data: bytes, maybe: Item | None) -> int:
        return len(data)

    async def fail(self, text: str) -> None:
        raise LookupError(text)

    async def stream(self, arrays: dict[str, np.ndarray]) -> AsyncIterator[str]:
        for name in arrays:
            yield name


_ITEM = Item("x", np.arange(4.0), {"a": 1}, [np.zeros((2, 3), np.int8), np.ones((), bool)])
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "item": (_ITEM, 2.0, "y"),
    "anything": ([{"a": [1, None, b"b", 1.5]}, np.arange(3)],),
    "union": ([_ITEM], b"data", None),
    "fail": ("why",),
    "stream": ({"a": np.arange(2), "b": np.arange(0)},),
}
TYPES: list[Any] = [Any, np.ndarray, wire.Fault, int, *(m.arguments for m in methods(Target).values())]


class Fuzzer:
    """Feeds inputs to the decoders and to a server, and notes what went wrong."""

    def __init__(self, seconds: float, out: Path) -> None:
        self._out = out
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._on_loop_exception)
        self._loop.run_until_complete(self._start())
        self._inputs = 0
        self._read = Counter[str]()  # what the decoders let through, and what they refused
        self._crashes: dict[str, str] = {}  # by where it was raised: the first input, in hexadecimal
        self._hangs: list[str] = []
        self._slowest_s = 0.0
        self._failure: BaseException | None = None
        self._began = time.monotonic()
        self._ends = self._began + seconds

    async def _start(self) -> None:
        pairs = [key.decode() for _ in range(2) for key in zmq.curve_keypair()]
        self._me = Sender(3, "fuzzed", "fuzzed-0", "another node")
        self._server = Server(SocketContext(), Keys(*pairs), self._me, Target(), "127.0.0.1", lambda: None)

    def one(self, data: bytes) -> None:
        """What libFuzzer calls with each input."""
        if time.monotonic() >= self._ends:
            self._finish()
        began = time.process_time()
        self._inputs += 1
        try:
            self._try(data)
        except Exception as error:
            self._note(error, data)
        if self._failure is not None:
            self._note(self._failure, data)
            self._failure = None
        took_s = time.process_time() - began
        self._slowest_s = max(self._slowest_s, took_s)
        if took_s > HANG_S:
            self._hangs.append(data.hex())

    def _try(self, data: bytes) -> None:
        way, data = data[:1], data[1:]
        if not way:
            return
        match way[0] % 3:
            case 0:
                self._decode(split(data))
            case 1:
                self._deliver(split(data))
            case 2:
                self._deliver(self._behind_a_good_envelope(atheris.FuzzedDataProvider(data)))

    def _decode(self, frames: list[bytes]) -> None:
        found: Any = [(None, frames)]
        with self._counting("envelope"):
            found = wire.read(frames)
        for envelope, message in found:
            for type_ in TYPES:
                with self._counting("body"):
                    value = wire.read_body(type_, message, envelope.shared if envelope else ())
                    with contextlib.suppress(
                        TypeError, RecursionError
                    ):  # an extension is no array everywhere
                        codec.encode(value)

    @contextlib.contextmanager
    def _counting(self, what: str) -> Iterator[None]:
        try:
            yield
            self._read[f"{what}_accepted"] += 1
        except wire.Malformed:
            self._read[f"{what}_refused"] += 1

    def _behind_a_good_envelope(self, chosen: Any) -> list[bytes]:
        method = chosen.PickValueInList([*methods(Target), "__init__", "absent"])
        wild = chosen.ConsumeIntInRange(0, 7) == 7  # a caller whose numbers do not rise
        envelope = wire.Envelope(
            wire.PROTOCOL,
            chosen.PickValueInList(_KINDS),
            chosen.ConsumeIntInRange(-2, 2**63) if wild else self._inputs,
            self._me.generation + chosen.ConsumeIntInRange(0, 8) // 8,
            "wild" if wild else "orderly",
            "driver-0",
            self._me.incarnation,
            method,
            chosen.ConsumeFloatInRange(0.0, 10.0),
            "another node",
            (reference(chosen),) if chosen.ConsumeIntInRange(0, 7) == 7 else (),
        )
        frames = body(chosen, method)
        if len(frames) == 1 and chosen.ConsumeIntInRange(0, 1):  # among other small ones
            return [wire.pack([wire.Packed(envelope, frames[0])] * chosen.ConsumeIntInRange(1, 3))]
        return [msgspec.msgpack.encode(envelope), *frames]

    def _deliver(self, frames: list[bytes]) -> None:
        async def deliver() -> None:
            self._server._on_message([_ROUTE, *frames])
            for _ in range(3):
                await asyncio.sleep(0)

        self._loop.run_until_complete(deliver())

    def _on_loop_exception(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failure = context.get("exception") or RuntimeError(context["message"])

    def _note(self, error: BaseException, data: bytes) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "?"
        self._crashes.setdefault(f"{type(error).__name__} at {where}: {str(error)[:200]}", data.hex())

    def _finish(self) -> None:
        """libFuzzer never returns, so the child ends here."""
        result = {
            "inputs": self._inputs,
            "seconds": round(time.monotonic() - self._began, 1),
            "crashes": self._crashes,
            "hangs_over_1_s": self._hangs,
            "slowest_input_s": round(self._slowest_s, 4),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "decoders": dict(self._read),
            "server": dict(self._server.counts),
            "tasks_left": len(self._server._running),
            "callers_remembered": len(self._server._executed),
        }
        self._out.write_text(json.dumps(result))
        os._exit(0)


def split(data: bytes) -> list[bytes]:
    """An input as frames: each is preceded by its length in two bytes."""
    frames = []
    while data:
        length = int.from_bytes(data[:2], "little")
        frames.append(data[2 : 2 + length])
        data = data[2 + length :]
    return frames


def join(frames: list[bytes]) -> bytes:
    """The reverse of `split`."""
    return b"".join(len(frame).to_bytes(2, "little") + frame for frame in frames)


def reference(chosen: Any) -> Reference:
    """Shared memory that is mostly not there; descriptors of this process are something else."""
    large = [0, 1, -1, 8, 4096, 2**63 - 1]
    return Reference(
        chosen.ConsumeIntInRange(-1, 5),
        chosen.PickValueInList([os.getpid(), 1, 0, -1, 2**63 - 1]),
        chosen.ConsumeIntInRange(-1, 40),
        chosen.PickValueInList(large),
        chosen.PickValueInList(large),
        chosen.PickValueInList(large),
        chosen.PickValueInList(large),
    )


def body(chosen: Any, method: str) -> list[bytes]:
    """The frames behind an envelope: bare, of any values, or good ones with a few bytes changed."""
    good = ARGUMENTS.get(method, ())
    match chosen.ConsumeIntInRange(0, 3):
        case 0:
            return split(chosen.ConsumeBytes(chosen.remaining_bytes()))
        case 1:
            arguments = [value(chosen, 4) for _ in range(len(good))]
            arrays = [bytes(8 * chosen.ConsumeIntInRange(0, 4)) for _ in range(3)]
            return [msgspec.msgpack.encode(arguments), *arrays]
        case _:
            frames = [bytearray(frame) for frame in codec.encode(good)]
            for _ in range(chosen.ConsumeIntInRange(0, 3)):
                frame = frames[chosen.ConsumeIntInRange(0, len(frames) - 1)]
                where = chosen.ConsumeIntInRange(0, len(frame))
                frame[where : where + chosen.ConsumeIntInRange(0, 2)] = chosen.ConsumeBytes(2)
            return [bytes(frame) for frame in frames]


def value(chosen: Any, depth: int) -> Any:
    """What msgpack can say, with arrays whose headers may lie."""
    match chosen.ConsumeIntInRange(0, 9 if depth else 5):
        case 0:
            return None
        case 1:
            return chosen.ConsumeIntInRange(-(2**63), 2**64 - 1)
        case 2:
            return chosen.ConsumeUnicodeNoSurrogates(8)
        case 3:
            return chosen.ConsumeBytes(8)
        case 4:
            return chosen.ConsumeFloat()
        case 5:
            shape = chosen.ConsumeIntListInRange(chosen.ConsumeIntInRange(0, 3), -1, 5)
            dtype = chosen.PickValueInList(["<f8", "<f4", "|u1", ">i2", "|b1", "|O", "<U2", "f4,f4", ""])
            header = [chosen.ConsumeIntInRange(-1, 4), dtype, shape]
            return msgspec.msgpack.Ext(chosen.PickValueInList([1, 1, 1, 2]), msgspec.msgpack.encode(header))
        case 6:
            return [value(chosen, depth - 1), [value(chosen, depth - 1)], {"a": 1}, []]
        case 7 | 8:
            return [value(chosen, depth - 1) for _ in range(chosen.ConsumeIntInRange(0, 4))]
        case _:
            names = ["name", "values", "counts", "more", "other"]
            return {chosen.PickValueInList(names): value(chosen, depth - 1) for _ in range(3)}


def seeds() -> list[bytes]:
    """Good messages, and random choices of what follows a good envelope, from which the fuzzer starts."""
    found = []
    for name, arguments in ARGUMENTS.items():
        envelope = wire.Envelope(wire.PROTOCOL, "call", 1, 3, "a", "driver-0", "fuzzed", name, 5.0)
        body = wire.encode(methods(Target)[name].arguments(*arguments))
        frames = [bytes(f) for f in wire.write(envelope, body)]
        found += [bytes([way]) + join(frames) for way in (0, 1)]
        if len(body) == 1:
            pack = wire.pack([wire.Packed(envelope, bytes(body[0]))] * 2)
            found += [bytes([way]) + join([pack]) for way in (0, 1)]
        found.append(b"\2" + join(frames[1:]))
    source = random.Random(0)
    return found + [b"\2" + source.randbytes(400) for _ in range(40)]


def fuzz(seconds: float, out: Path, corpus: Path) -> None:
    """The child: fuzzes until the time is over, and writes its figures."""
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    fuzzer = Fuzzer(seconds, out)
    options = [
        "-len_control=0",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={MAX_RSS_MB}",
        f"-timeout={KILL_S}",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={out.parent}/", str(corpus)], fuzzer.one)
    atheris.Fuzz()


def coverage(log: str) -> dict[str, int]:
    """libFuzzer's last word: edges and features of the instrumented modules that were reached."""
    words = next((line for line in reversed(log.splitlines()) if " cov: " in line), "").split()
    return {name: int(words[words.index(f"{name}:") + 1]) for name in ("cov", "ft") if f"{name}:" in words}


def main() -> None:
    """Runs the child and keeps what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        fuzz(arguments.seconds, arguments.out, arguments.child)
    with tempfile.TemporaryDirectory() as scratch:
        corpus, result = Path(scratch) / "corpus", Path(scratch) / "result.json"
        corpus.mkdir()
        command = [sys.executable, "-P", __file__, "--seconds", str(arguments.seconds)]
        child = subprocess.run(
            [*command, "--out", result, "--child", corpus], stderr=subprocess.PIPE, text=True, check=False
        )
        found = json.loads(result.read_text()) if result.exists() else {"died": child.stderr[-4000:]}
        report = {
            **found,
            "exit_code": child.returncode,
            "coverage": coverage(child.stderr),
            "corpus": len(list(corpus.iterdir())),
            "versions": {
                "python": platform.python_version(),
                "zeromq": zmq.zmq_version(),
                **{
                    name: importlib.metadata.version(name)
                    for name in ("atheris", "pyzmq", "msgspec", "numpy")
                },
            },
            "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU used",
            "date": datetime.date.today().isoformat(),
        }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
