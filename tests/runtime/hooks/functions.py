"""Functions of a user that misbehave, for the tests of what holds them. Imports nothing heavy: pools load it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from typing import Any

from verst.runtime.hooks.errors import LabelError
from verst.runtime.hooks.score import Score


def length(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return len(response) / label + metadata.get("more", 0)


async def async_length(response: str, label: Any, metadata: dict[str, Any]) -> float:
    await asyncio.sleep(0)
    return len(response) / label + metadata.get("more", 0)


class Scorer:
    async def __call__(self, response: str, label: Any, metadata: dict[str, Any]) -> float:
        return 3


scorer = Scorer()


def by_label(response: str, label: Any, metadata: dict[str, Any]) -> Any:
    """Does what the label says."""
    return _ACTIONS[label]() if label in _ACTIONS else label


async def by_label_async(response: str, label: Any, metadata: dict[str, Any]) -> Any:
    if label == "wait":
        await asyncio.sleep(60)
    if label == "a while":
        await asyncio.sleep(0.4)
        return 2.0
    return by_label(response, label, metadata)


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


def first_time_only(response: str, label: Any, metadata: dict[str, Any]) -> float:
    """Fails until the file named by the label is there, which it then makes."""
    if os.path.exists(label):
        return 1.0
    open(label, "w").close()
    raise ConnectionError("the judge is not there")


def printing(response: str, label: Any, metadata: dict[str, Any]) -> float:
    for number in range(label):
        print("line", os.getpid(), response, number, "x" * 60)
    return 0.0
