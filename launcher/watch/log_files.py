"""The logs of a run as they grow: which there are, and their new lines, at little cost for thousands of them.

Looking costs one stat of each file; only a file that has grown is opened, one at a time, and read in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import aside

_PIECE = 1 << 20


def log_files(folder: RunFolder, attempt: int | None) -> dict[Path, str]:
    """The log files of one life of the run and the process each belongs to.

    None: of the present life, with those of processes that came into it from an earlier one (engines do) and
    go on in the file they have.
    """
    present = folder.generation if attempt is None else attempt
    found = _files(folder, present)
    if attempt is None and present > 0:
        began = os.stat(folder.root / "generation").st_mtime
        for earlier in range(present - 1, -1, -1):
            for path, name in _files(folder, earlier).items():
                if path.stat().st_mtime > began and name not in found.values():
                    found[path] = name
    return found


def _files(folder: RunFolder, attempt: int) -> dict[Path, str]:
    root = folder.logs / f"attempt-{attempt}"
    return {path: path.stem for path in sorted(root.glob("*/*/*.log")) if path.parts[-3] != "agents"}


class GrowingLog:
    """Whole lines of a log since the last look, across its being set aside; a half-written last line waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._new = True

    def lines(self) -> Iterator[str]:
        """The new lines. The first look begins with what was set aside."""
        if self._new:
            self._new = False
            count = 0
            while aside(self.path, count + 1).exists():
                count += 1
            for number in range(count, 0, -1):
                yield from self._read(aside(self.path, number), final=True)
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            return
        if size < self._offset:  # it was set aside: what we have not seen of it is in the newest of those
            yield from self._read(aside(self.path, 1), final=True)
            self._offset = 0
        if size > self._offset:
            yield from self._read(self.path)

    def _read(self, path: Path, final: bool = False) -> Iterator[str]:
        """Lines from the offset on; `final`: nothing is added to this file any more."""
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(self._offset)
            rest = b""
            while piece := stream.read(_PIECE):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    self._offset += len(line) + 1
                    yield line.decode(errors="replace")
        if final:
            self._offset = 0
            if rest:
                yield rest.decode(errors="replace")
