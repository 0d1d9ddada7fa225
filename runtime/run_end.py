"""The file `ended` of a run folder: how one node agent tells the others that the run is over.

The agent of the process that ended the run, well or badly, writes it; all others see it within half a
second and stop their processes. It belongs to one generation: an older one means nothing.
"""

from __future__ import annotations

import msgspec

from verst.runtime.run_folder import RunFolder, write_atomically


class RunEnd(msgspec.Struct, frozen=True):
    """Why and how a life of the run ended."""

    code: int  # 0: well
    reason: str
    generation: int


def read_end(folder: RunFolder, generation: int) -> RunEnd | None:
    """The end of this generation, if it has come."""
    try:
        end = msgspec.json.decode((folder.root / "ended").read_bytes(), type=RunEnd)
    except FileNotFoundError:
        return None
    return end if end.generation == generation else None


def write_end(folder: RunFolder, end: RunEnd) -> RunEnd:
    """Reports the end of the run, unless another did first. Returns the one that holds."""
    earlier = read_end(folder, end.generation)
    if earlier is not None:
        return earlier
    write_atomically(folder.root / "ended", msgspec.json.encode(end))
    return end
