"""The ways to shut a program in, what each protects from, and which of them this machine has."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Collection
from functools import cache
from typing import Literal, get_args

Method = Literal["namespaces", "bubblewrap", "landlock", "seccomp", "limits"]
Protection = Literal["network", "files", "processes", "disk"]

# From the strongest to the weakest.
METHODS: tuple[Method, ...] = get_args(Method)
PROTECTIONS: tuple[Protection, ...] = get_args(Protection)
_GIVES: dict[Method, tuple[Protection, ...]] = {
    "namespaces": PROTECTIONS,
    "bubblewrap": PROTECTIONS,
    "landlock": ("network", "files", "processes"),
    "seccomp": ("network", "processes"),
    "limits": (),
}


class SandboxError(RuntimeError):
    """The sandbox cannot start or has failed. What a program does inside never raises it."""


def protections(method: Method) -> tuple[Protection, ...]:
    """What a method gives besides limits of time, memory, output and files, and an empty environment."""
    return _GIVES[method]


def missing(method: Method, require: Collection[str]) -> list[Protection]:
    """Which of the required protections a method does not give."""
    return [name for name in PROTECTIONS if name in require and name not in _GIVES[method]]


def check_names(require: Collection[str]) -> None:
    """Raises ValueError if one of the names is no protection."""
    if isinstance(require, str) or (unknown := [name for name in require if name not in PROTECTIONS]):
        wrong = require if isinstance(require, str) else unknown[0]
        raise ValueError(f"require is a list of {', '.join(PROTECTIONS)}; {wrong!r} is none of them")


@cache
def bubblewrap() -> str | None:
    """The path of bubblewrap's program, if it is installed."""
    return shutil.which("bwrap")


@cache
def landlock_version() -> int:
    """The version of the kernel's Landlock; 0 if it has none."""
    version = ctypes.CDLL(None).syscall(444, None, 0, 1)
    return max(0, int(version)) if os.uname().sysname == "Linux" else 0
