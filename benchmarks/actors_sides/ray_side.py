"""Ray's side, run by an interpreter that has Ray: `python -m benchmarks.actors_sides.ray_side measure|first|call …`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
import ray

from benchmarks.actors_sides import measures as m


@ray.remote(num_cpus=0)
class Echo:
    """What is called."""

    def one(self) -> int:
        return 1

    def size(self, array: np.ndarray) -> int:
        return array.nbytes

    def pid(self) -> int:
        return os.getpid()


def start(**options: Any) -> None:
    """A cluster of one node, as quiet as it can be."""
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)


def first() -> None:
    """From nothing to the first answer; the caller times the whole process."""
    start(num_cpus=2)
    assert ray.get(Echo.remote().one.remote()) == 1
    print(time.time(), flush=True)


def call(address: str, calls: int, in_flight: int) -> None:
    """One of several callers: starts when told to, prints when it began and ended."""
    start(address=address, namespace="benchmark")
    echo = ray.get_actor("echo")
    ray.get(echo.one.remote())
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.time()
    calls_at_once(echo, calls, in_flight)
    print(json.dumps([began, time.time()]), flush=True)


def calls_at_once(echo: Any, calls: int, in_flight: int) -> None:
    for _ in range(calls // in_flight):
        ray.get([echo.one.remote() for _ in range(in_flight)])


def measure() -> dict[str, Any]:
    """Everything but the start of a first call."""
    start(num_cpus=2, namespace="benchmark")
    found: dict[str, Any] = {}
    echo = Echo.options(name="echo").remote()
    ray.get(echo.one.remote())
    found |= m.round_trips([timed(lambda: echo.one.remote()) for _ in range(m.ROUND_TRIPS)])
    began = time.perf_counter()
    calls_at_once(echo, m.CALLS, m.IN_FLIGHT)
    found["calls_per_s_one_caller"] = m.CALLS / (time.perf_counter() - began)
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", __spec__.name, "call", address]
    found["calls_per_s_eight_callers"] = m.several_callers([command] * m.CALLERS)
    found["array_gb_per_s"] = m.gigabytes_per_second(
        [timed(lambda: echo.size.remote(m.ARRAY)) for _ in range(m.ARRAYS)]
    )
    reference = ray.put(m.ARRAY)
    found["shared_array_gb_per_s"] = m.gigabytes_per_second(
        [timed(lambda: echo.size.remote(reference)) for _ in range(m.ARRAYS)]
    )
    began = time.perf_counter()
    many = [Echo.remote() for _ in range(m.MANY)]
    pids = ray.get([one.pid.remote() for one in many])
    found["start_16_actors_s"] = time.perf_counter() - began
    time.sleep(2)
    found |= m.memory_mib(pids)
    return found


def timed(call: Any) -> float:
    began = time.perf_counter()
    ray.get(call())
    return time.perf_counter() - began


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["first"]:
            first()
        case ["call", address, calls, in_flight]:
            call(address, int(calls), int(in_flight))
        case ["measure"]:
            print(json.dumps(measure()))
