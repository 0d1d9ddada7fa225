"""Functions of a user that misbehave, for the tests of what holds them. Imports nothing heavy: pools load it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import stat
import struct
import sys
import time
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.score import Score


def length(answer: Answer) -> float:
    return len(answer.text) / answer.label + answer.metadata.get("more", 0)


async def async_length(answer: Answer) -> float:
    await asyncio.sleep(0)
    return len(answer.text) / answer.label + answer.metadata.get("more", 0)


def fields(answer: Answer) -> float:
    a = answer
    told = f"{a.text!r} {a.label} {a.metadata} {a.prompt!r} {len(a.ids)} {a.ids[-1]} {a.finish} {a.turns}"
    raise ValueError(f"{told} {a.messages} {a.evaluation}")


class Scorer:
    async def __call__(self, answer: Answer) -> float:
        return 3


scorer = Scorer()


def by_label(answer: Answer) -> Any:
    """Does what the label says."""
    return _ACTIONS[answer.label]() if answer.label in _ACTIONS else answer.label


async def by_label_async(answer: Answer) -> Any:
    if answer.label == "wait":
        await asyncio.sleep(60)
    if answer.label == "a while":
        await asyncio.sleep(0.4)
        return 2.0
    return by_label(answer)


def _raise() -> None:
    raise KeyError("oracle")


def _deep() -> None:
    import json

    json.loads("{")


def _stop() -> None:
    raise StopIteration("enough")


def _label() -> None:
    raise LabelError("the label is no number")


def _hold_the_lock() -> None:
    10 ** (10**9)


def _memory() -> int:
    return len(bytearray(8 << 30))


def _fork() -> float:
    os.fork()
    return 1.0


def _fork_and_hang() -> None:
    if os.fork() == 0:
        os.execv("/bin/sleep", ["sleep-of-a-reward", "600"])
    time.sleep(600)


def _garbage() -> None:
    """Writes what is no message into every socket of this process, such as the one to its pool."""
    for number in range(3, 100):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, struct.pack("<IQ", 1, 1 << 40))
    time.sleep(600)


def _numpy(kind: str, value: Any) -> Any:
    import numpy as np

    return getattr(np, kind)(value)


_ACTIONS = {
    "raise": _raise,
    "deep": _deep,
    "stop": _stop,
    "label": _label,
    "exit": lambda: sys.exit(3),
    "leave": lambda: os._exit(7),
    "hang": lambda: time.sleep(600),
    "lock": _hold_the_lock,
    "segfault": lambda: ctypes.string_at(0),
    "memory": _memory,
    "fork": _fork,
    "garbage": _garbage,
    "fork and hang": _fork_and_hang,
    "second": lambda: time.sleep(1) or 1.0,
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "huge": lambda: 10**400,
    "text": lambda: "0.5",
    "bool": lambda: _numpy("bool_", True),
    "float32": lambda: _numpy("float32", 0.25),
    "half": lambda: 0.5,
    "parts": lambda: Score(0.75, {"right": 1, "brief": -0.25}),
    "wrong part": lambda: Score(0.75, {"right": float("nan")}),
    "no parts": lambda: Score(0.75, None),  # type: ignore[arg-type]
    "wrong name": lambda: Score(0.75, {"a b": 1.0}),
}


def first_time_only(answer: Answer) -> float:
    """Fails until the file named by the label is there, which it then makes."""
    if os.path.exists(answer.label):
        return 1.0
    open(answer.label, "w").close()
    raise ConnectionError("the judge is not there")


def printing(answer: Answer) -> float:
    for number in range(answer.label):
        print("line", os.getpid(), answer.text, number, "x" * 60)
    return 0.0
