"""Times the phases of a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from verst.runtime.metrics.trace import Tracer


class Phases:
    """The seconds that each phase of a step took, in all. Each time is also a span of the trace."""

    def __init__(self, trace: Tracer, version: int) -> None:
        self.seconds: dict[str, float] = {}
        self.version = version  # the weight version that the step trains
        self._trace = trace

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times the body, including its work on the device."""
        began = time.monotonic()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + ended - began
        self._trace.add(phase, began, ended, version=self.version)
