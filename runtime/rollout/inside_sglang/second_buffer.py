"""A second copy of an engine's parameters, which receives a new version while the engine generates with the first.

To take the version over, the second copy is copied over the first on the device. Exchanging pointers is not possible,
because captured CUDA graphs refer to the parameters by their addresses. On an H200 this took 32 ms for 30 GB.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from verst.sync.wire.wire import TransferError


class SecondBuffer:
    """The second copy of one rank's parameters."""

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        # Whole storages are copied: a parameter may be a view, and padding must keep its values.
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in parameters}
        self._first = [_bytes_of(storage) for storage in storages.values()]
        self._second = [first.clone() for first in self._first]
        second = dict(zip(storages, self._second, strict=True))
        self.parameters = [
            second[p.untyped_storage().data_ptr()]
            .view(p.dtype)
            .as_strided(p.shape, p.stride(), p.storage_offset())
            for p in parameters
        ]
        self._thread: threading.Thread | None = None
        self._outcome: tuple[int, float, str | None] | None = None  # version, seconds, why it failed

    @property
    def nbytes(self) -> int:
        """Bytes of memory of the second copy."""
        return sum(second.nbytes for second in self._second)

    def fill(self, receive: Callable[[], None], version: int, done: Path | None) -> None:
        """Calls `receive` in a thread of its own, which creates the file `done` at its end.

        Raises TransferError if an earlier version is still being received.
        """
        if self._thread is not None and self._thread.is_alive():
            raise TransferError("an earlier version is still being received")
        device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._outcome = None

        def run() -> None:
            if device is not None:
                torch.cuda.set_device(device)
            began = time.monotonic()
            failure = None
            try:
                receive()
            except (RuntimeError, ValueError) as error:  # from the exchange or torch; `wait` raises it again
                failure = str(error) or type(error).__name__
            self._outcome = version, time.monotonic() - began, failure
            if done is not None:
                done.touch()

        self._thread = threading.Thread(target=run, name=f"receiving version {version}", daemon=True)
        self._thread.start()

    def wait(self, version: int, deadline: float) -> float:
        """Waits until the version is received; returns the seconds that receiving took.

        Raises TransferError if it failed or is not done by the deadline.
        """
        if self._thread is None:
            raise TransferError(f"version {version} was not staged")
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._outcome is None:
            raise TransferError(f"version {version} was not received by the deadline")
        have, seconds, failure = self._outcome
        if failure is not None:
            raise TransferError(failure)
        if have != version:
            raise TransferError(f"the second buffer has version {have}, not {version}")
        return seconds

    @torch.no_grad()
    def take_over(self) -> None:
        """Copies the second copy over the first."""
        torch._foreach_copy_(self._first, self._second)
        if self._first and self._first[0].is_cuda:
            torch.cuda.synchronize()
        self._outcome = None


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
