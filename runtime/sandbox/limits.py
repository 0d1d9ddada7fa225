"""What a program in the sandbox may use, and what becomes of it."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["ok", "error", "time", "cpu", "output"]


class SandboxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of each program that a sandbox runs, and of its scratch folder."""

    seconds: float = 10.0  # of the clock
    cpu_seconds: int = 10  # of all its threads together
    memory_mib: int = 1024  # of address space (RLIMIT_AS), Python's own included
    output_kib: int = 1024  # of what it writes to stdout and stderr together
    file_mib: int = 16  # of each file
    disk_mib: int = 64  # of the scratch folder, all files together; held in memory with mounts of its own


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended, and what it wrote."""

    status: Status  # "time", "cpu" and "output": it was ended at this limit; "error": its exit code is not 0
    code: int  # its exit code; -n if signal n ended it
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    memory_bytes: int  # the most that it had in memory at once
