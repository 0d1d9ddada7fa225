"""TensorBoard: writes event files in `tensorboard/` in the run folder, one for each life of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TensorboardSink:
    """Writes each figure as a scalar of the same name."""

    def __init__(self, folder: Path) -> None:
        self._writer = SummaryWriter(str(folder), flush_secs=30)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds each value as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the file."""
        self._writer.close()
