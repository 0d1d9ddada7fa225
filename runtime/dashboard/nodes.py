"""The table of the run's nodes: how busy and how full each machine is, by the files that the node agents replace."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from verst.runtime.dashboard.pulse import Pulse
from verst.runtime.node.machine_use import EVERY_S, MachineUse, use_path
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan

_AGAIN_S = 5.0  # pages that ask within this time share one look
_RARELY = 20  # looking takes at most one second in so many


class Nodes:
    """Reads the nodes' figures when a page asks for them. Not thread-safe."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._pulse = Pulse()
        self._next_look = 0.0
        self._rows: list[dict[str, Any]] = []

    def table(self, plan: Plan | None) -> list[dict[str, Any]]:
        """One row for each node of the plan. `age` is in seconds; a node without figures has only its name."""
        began = time.monotonic()
        if began >= self._next_look:
            self._rows = [
                self._row(g, n)
                for g, nodes in (plan.groups if plan else {}).items()
                for n in range(len(nodes))
            ]
            self._next_look = began + max(_AGAIN_S, _RARELY * (time.monotonic() - began))
        return self._rows

    def _row(self, group: str, node: int) -> dict[str, Any]:
        path = use_path(self._folder, group, node)
        row: dict[str, Any] = {"group": group, "node": node}
        try:
            age = self._pulse.note(path.name, path.stat().st_mtime)
            use = msgspec.json.decode(path.read_bytes(), type=MachineUse)
        except (FileNotFoundError, msgspec.DecodeError):
            return row
        return {**row, "age": round(age), "stale": age > 6 * EVERY_S, **msgspec.to_builtins(use)}
