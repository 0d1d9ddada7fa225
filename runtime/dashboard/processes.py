"""The table of the run's processes: those in plan.json, with their state from member files and events."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

import msgspec

from verst.runtime.actors.directory import MemberInfo
from verst.runtime.actors.member import LEASE_S
from verst.runtime.dashboard.pulse import Pulse
from verst.runtime.node import gpu_use
from verst.runtime.node.gpu_use import NodeUse
from verst.runtime.run.ending import RunEnd
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan

_EVERY_S = 5.0
_RARELY = 20  # looking takes at most one second in so many: the file system is shared
_STALE_GPUS = 5  # figures older than so many of their intervals are not shown
_ENGINE = re.compile(r"engine (\d+)\b")


class Row(NamedTuple):
    """A process as the page shows it."""

    name: str
    role: str
    group: str
    node: int | None
    state: str  # "live" | "serving" | "silent" | "restarting" | "lost" | "failed" | "absent" | "ended"
    host: str
    pid: int | None
    gpus: str
    restarts: int
    note: str  # the text of the last event about it
    gpu_used: int | None = None  # bytes used on its GPUs, by all processes there
    gpu_total: int | None = None
    gpu_busy: float | None = None  # 0 to 1


class _Member(NamedTuple):
    info: MemberInfo
    inode: int
    mtime: float
    age: float


class Processes:
    """Keeps the table up to date from the run folder. `version` changes whenever the table does."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._pulse = Pulse()
        self._members: dict[str, _Member] = {}
        self._uses: dict[tuple[str, int], NodeUse] = {}
        self._plan: Plan | None = None
        self._plan_mtime = 0.0
        self._restarts: dict[str, int] = {}
        self._restarted_at: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._engines: dict[str, str] = {}  # rollout-3: "serving" | "lost"
        self._failed: set[str] = set()
        self._generation = 0
        self._next_look = 0.0
        self.rows: list[Row] = []
        self.version = 0

    def apply_event(self, event: dict[str, Any]) -> None:
        """Applies an event of events.jsonl to the table."""
        generation = event.get("generation")
        if isinstance(generation, int) and generation > self._generation:
            self._begin_life(generation)
        text = str(event.get("message") or event.get("reason") or "").partition("\n")[0]
        kind, name = event.get("kind"), event.get("process")
        if kind == "process_restarted" and isinstance(name, str):
            self._restarts[name] = int(event.get("restart") or 0)
            self._restarted_at[name] = float(event.get("time") or 0.0)
            self._notes[name] = str(event.get("ending", ""))
            self._engines.pop(name, None)
        elif kind == "process_failed":
            name = text.partition(" ")[0]
            self._failed.add(name)
            self._notes[name] = text
        elif kind in ("engine_ready", "engine_lost", "engine_left_out") and (m := _ENGINE.search(text)):
            engine = f"rollout-{m[1]}"
            self._notes[engine] = text
            self._engines[engine] = "serving" if kind == "engine_ready" else "lost"

    def _begin_life(self, generation: int) -> None:
        self._generation = generation
        for of_last_life in (self._restarts, self._restarted_at, self._notes, self._engines, self._failed):
            of_last_life.clear()

    def update(self, generation: int, end: RunEnd | None) -> None:
        """Updates the table. Looks into the folder at most every few seconds."""
        if generation > self._generation:
            self._begin_life(generation)
        began = time.monotonic()
        if began >= self._next_look:
            self._read_plan()
            self._look()
            took = time.monotonic() - began
            self._next_look = began + max(_EVERY_S, _RARELY * took)
        rows = self._make_rows(generation, end)
        if rows != self.rows:
            self.rows = rows
            self.version += 1

    @property
    def alive(self) -> bool:
        """Whether any process is known to run."""
        return any(row.state in ("live", "serving") for row in self.rows)

    def plan(self) -> Plan | None:
        """The run's plan, as of the last look into the folder."""
        return self._plan

    def _read_plan(self) -> None:
        try:
            mtime = self._folder.plan.stat().st_mtime
        except FileNotFoundError:
            return
        if mtime != self._plan_mtime:
            self._plan, self._plan_mtime = Plan.read(self._folder.plan), mtime

    def _look(self) -> None:
        """Notes the age of every member file, and reads those that are new or replaced."""
        members: dict[str, _Member] = {}
        for path in self._folder.members.glob("*.json"):
            name = path.stem
            if name.startswith("."):
                continue
            before = self._members.get(name)
            try:
                status = path.stat()
                same = before is not None and before.inode == status.st_ino
                info = (
                    before.info
                    if same and before
                    else msgspec.json.decode(path.read_bytes(), type=MemberInfo)
                )
            except (FileNotFoundError, msgspec.DecodeError):
                continue
            members[name] = _Member(
                info, status.st_ino, status.st_mtime, self._pulse.note(name, status.st_mtime)
            )
        uses = self._look_at_gpus()
        self._pulse.forget_all_but({*members, *(f"gpus/{group}-{node}" for group, node in uses)})
        self._members, self._uses = members, uses

    def _look_at_gpus(self) -> dict[tuple[str, int], NodeUse]:
        """Reads the GPU figures of all nodes that have recent ones."""
        found = {}
        for group, nodes in (self._plan.groups if self._plan else {}).items():
            for node, of_node in enumerate(nodes):
                if not any(process.role == gpu_use.ROLE for process in of_node.processes):
                    continue
                path = gpu_use.use_path(self._folder, group, node)
                try:
                    age = self._pulse.note(f"gpus/{group}-{node}", path.stat().st_mtime)
                    if age < _STALE_GPUS * gpu_use.EVERY_S:
                        found[group, node] = msgspec.json.decode(path.read_bytes(), type=NodeUse)
                except (FileNotFoundError, msgspec.DecodeError):
                    continue
        return found

    def _make_rows(self, generation: int, end: RunEnd | None) -> list[Row]:
        planned = {
            process.name: (process, group, node)
            for group, nodes in (self._plan.groups if self._plan else {}).items()
            for node, of_node in enumerate(nodes)
            for process in of_node.processes
            if process.on_exit != "ignored"
        }
        rows = []
        for name, (process, group, node) in planned.items():
            gpus = "" if process.gpus is None else ",".join(map(str, process.gpus))
            row = self._row(name, process.role, group, node, gpus, generation, end)
            use = self._uses.get((group, node)) if end is None else None
            if use is not None and (figures := gpu_use.in_figures(gpu_use.of_process(process, use))):
                row = row._replace(gpu_used=figures[0], gpu_total=figures[1], gpu_busy=figures[2])
            rows.append(row)
        for name, member in self._members.items():
            if name not in planned:
                rows.append(self._row(name, member.info.role, "", None, "", generation, end))
        return rows

    def _row(
        self,
        name: str,
        role: str,
        group: str,
        node: int | None,
        gpus: str,
        generation: int,
        end: RunEnd | None,
    ) -> Row:
        member = self._members.get(name)
        info = member.info if member is not None and member.info.generation == generation else None
        return Row(
            name=name,
            role=role,
            group=group,
            node=node,
            state=self._state(name, None if info is None else member, end),
            host=info.host if info else "",
            pid=info.pid if info else None,
            gpus=gpus,
            restarts=self._restarts.get(name, 0),
            note=self._notes.get(name, "")[:200],
        )

    def _state(self, name: str, member: _Member | None, end: RunEnd | None) -> str:
        if name in self._failed:
            return "failed"
        if end is not None:
            return "ended"
        # A crashed process leaves its file behind, as of its last heartbeat.
        if name in self._restarts and (member is None or member.mtime < self._restarted_at[name]):
            return "restarting"
        if member is None:
            return "absent"
        if member.age > LEASE_S + _EVERY_S:
            return "silent"
        return self._engines.get(name, "live")

    def table(self) -> dict[str, Any]:
        """The table, as columns."""
        columns = zip(*self.rows, strict=True) if self.rows else ([] for _ in Row._fields)
        return {"version": self.version, "columns": dict(zip(Row._fields, map(list, columns), strict=True))}
