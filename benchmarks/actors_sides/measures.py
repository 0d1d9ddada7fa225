"""What both sides share: statistics and the memory of a process. Standard library, numpy and psutil alone."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

ROUND_TRIPS = 3000
CALLS = 20_000
IN_FLIGHT = 500
CALLERS = 8
ARRAY = np.arange(8 << 20, dtype=np.float64)  # 64 MiB
ARRAYS = 12
MANY = 16


def round_trips(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    ordered = sorted(seconds)
    return {
        "round_trip_p50_ms": 1e3 * statistics.median(ordered),
        "round_trip_p99_ms": 1e3 * ordered[int(0.99 * len(ordered))],
    }


def several_callers(commands: Sequence[Sequence[str]]) -> float:
    """Calls a second of all processes together, which share CALLS and IN_FLIGHT.

    Each gets its calls and how many of them at once as further arguments, says "ready", waits for a line, and
    prints the times of its begin and its end.
    """
    calls, in_flight = CALLS // len(commands), IN_FLIGHT // len(commands)
    started = [
        subprocess.Popen(
            [*command, str(calls), str(in_flight)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    for process in started:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "ready\n":
            assert line, f"a caller ended: {process.args!r}"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    times = [json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in started]
    return len(commands) * calls / (max(end for _, end in times) - min(begin for begin, _ in times))


def gigabytes_per_second(seconds: list[float]) -> float:
    """Of one 64 MiB argument, by the median call."""
    return ARRAY.nbytes / statistics.median(seconds) / 1e9


def memory_mib(pids: list[int]) -> dict[str, Any]:
    """Mean memory of processes: what is theirs alone (USS), and with their part of what they share (PSS)."""
    full = [psutil.Process(pid).memory_full_info() for pid in pids]
    return {
        "memory_per_idle_actor_uss_mib": statistics.fmean(m.uss for m in full) / 2**20,
        "memory_per_idle_actor_pss_mib": statistics.fmean(m.pss for m in full) / 2**20,
    }
