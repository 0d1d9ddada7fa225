"""Determines the state of a run, in one word with a reason, from its folder alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

from verst.runtime.dashboard.pulse import Pulse
from verst.runtime.run.ending import STOPPED, RunEnd, read_end
from verst.runtime.run.folder import RunFolder

SILENT_S = 120.0

Word = Literal["not started", "running", "silent", "finished", "comes back", "stopped", "failed", "cancelled"]


class RunState(NamedTuple):
    """The state of a run in a word, with the reason if there is one."""

    word: Word
    why: str = ""


class StateReader:
    """Reads the state of a run. A run that was killed leaves no ending; its files no longer change."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._pulse = Pulse()

    def read(self, alive: bool) -> RunState:
        """Returns the state. `alive`: whether any process of the run is known to run."""
        folder = self._folder
        life = folder.life
        if life is None:
            return RunState("not started", "no process of it has run yet")
        end = read_end(folder, life.generation)
        if end is not None:
            return state_of_end(end, folder.cancelled)
        quiet = self._quiet_s()
        if alive or quiet < SILENT_S:
            return RunState("running")
        minutes = f"no sign of life for {quiet / 60:.0f} minutes"
        return RunState("silent", f"{minutes}: it was killed, or it is waiting for its nodes")

    def _quiet_s(self) -> float:
        ages = []
        for path in (self._folder.metrics, self._folder.events, self._folder.root / "life"):
            try:
                ages.append(self._pulse.note(path.name, path.stat().st_mtime))
            except FileNotFoundError:
                continue
        return min(ages, default=0.0)


def state_of_end(end: RunEnd, cancelled: str | None) -> RunState:
    """The state of a run whose present life has ended. `cancelled`: who cancelled it, and when."""
    if end.code == 0:
        return RunState("finished", end.reason)
    if cancelled is not None:
        return RunState("cancelled", f"cancelled by {cancelled.strip()}; {end.reason}")
    if end.resumes:
        return RunState("comes back", end.reason)
    return RunState("stopped" if end.code == STOPPED else "failed", end.reason)
