"""Reads and writes the member files, from which a member learns who is present.

Each member has a file `members/<role>-<index>.json` in the run folder. It writes the file by atomic rename
and touches it regularly to renew its lease. Readers note by their own clock when they last saw the file
change: they never compare clocks with other hosts or with the file server. Time in which the file system did
not answer does not count against any lease.

The folder is listed only for members that ask about a whole role. A member that calls others by name opens
only their files, so its load on the shared file system does not grow with the run. `following.py` decides
when to read.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from verst.runtime.actors.errors import MemberLost
from verst.runtime.run.folder import RunFolder, write_atomically

_FILE = re.compile(r"([a-z][a-z0-9_]*)-(\d+)\.json")
_ROLE = re.compile(r"[a-z][a-z0-9_]*")


class MemberInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a member's file: how to reach the member, and which life of it this is."""

    role: str
    index: int
    generation: int
    incarnation: str  # unique for each life of a process
    host: str
    port: int
    pid: int
    node: str = ""  # its `shared_memory.node_key`
    details: dict[str, str | int] = {}

    @property
    def name(self) -> str:
        """Its name in files and messages: "trainer-3"."""
        return f"{self.role}-{self.index}"

    @property
    def endpoint(self) -> str:
        """The address for ZeroMQ's `connect`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def check_role(role: str) -> None:
    """Raises ValueError if `role` cannot be part of a file name."""
    if not _ROLE.fullmatch(role):
        raise ValueError(f"role {role!r}: use lower-case letters, digits and underscores, a letter first")


class Registration:
    """Our own member file: written when we join, touched as a heartbeat, removed when we leave."""

    def __init__(self, folder: RunFolder, info: MemberInfo) -> None:
        self.info = info
        self._path = folder.members / f"{info.name}.json"

    def write(self) -> None:
        """Writes the file, replacing that of an earlier life."""
        write_atomically(self._path, msgspec.json.encode(self.info))

    def renew(self) -> None:
        """Renews the lease. Raises MemberLost when the file is gone or another process has taken the name."""
        holder = self._holder()
        if holder != self.info.incarnation:
            reason = "its file was removed" if holder is None else "another process joined under its name"
            raise MemberLost(self.info.name, reason)
        os.utime(self._path)

    def remove(self) -> None:
        """Removes the file, unless it belongs to another process by now."""
        if self._holder() == self.info.incarnation:
            self._path.unlink(missing_ok=True)

    def _holder(self) -> str | None:
        found = _read(self._path)
        return None if found is None else found[0].incarnation


class _Observed(msgspec.Struct):
    """Our knowledge of one file. `changed` and `read` are monotonic times; `mtime_ns` is only compared."""

    info: MemberInfo
    inode: int
    mtime_ns: int
    changed: float
    read: float


class Directory:
    """The members of this generation that we asked about, each as of the last time its file was read."""

    def __init__(self, folder: RunFolder, generation: int, lease_s: float) -> None:
        self._path = folder.members
        self._generation = generation
        self._lease_s = lease_s
        self._observed: dict[str, _Observed] = {}  # by member name
        self._refused: dict[str, float] = {}  # incarnation: when its port refused a connection, monotonic
        self._last_tick = time.monotonic()

    def refresh(self, roles: Collection[str], names: Iterable[str] = ()) -> None:
        """Reads the files of `names`, and if there are `roles`, lists the folder and reads their files.

        Of a listed role it opens only the files that are new, were replaced, are no longer listed (a cached
        listing may be old), or were not read for a third of a lease. Without roles it lists nothing. It opens
        files instead of calling stat alone, because opening makes NFS ask the server. It does file I/O, so
        call it in a thread, and only one call at a time.
        """
        self.tick()
        started = time.monotonic()
        before = self._observed
        reading = set(names)
        if roles:
            inodes = self._list(roles)
            reading.update(name for name, inode in inodes.items() if self._is_due(name, inode))
            reading.update(n for n, seen in before.items() if seen.info.role in roles and n not in inodes)
        observed = before.copy()
        for name in reading:
            seen = self._observe(name)
            if seen is not None:
                observed[name] = seen
            else:
                observed.pop(name, None)
        self._observed = observed
        if (held_up := time.monotonic() - started) > self._lease_s / 3:
            self._forgive(held_up)

    def tick(self) -> None:
        """Notes that we are awake. Call it about every second: a long gap means that we were held up.

        That time then counts against no lease.
        """
        now = time.monotonic()
        if now - self._last_tick > self._lease_s / 3:
            self._forgive(now - self._last_tick)
        self._last_tick = now

    def due(self, names: Iterable[str]) -> list[str]:
        """Those of `names` whose files have not been read for a third of a lease."""
        return [name for name in names if self._is_due(name)]

    def members(self, role: str) -> list[MemberInfo]:
        """The present members of a role, by index."""
        present = [seen.info for seen in self._observed.copy().values() if self.absence(seen.info) is None]
        return sorted((info for info in present if info.role == role), key=lambda info: info.index)

    def find(self, role: str, index: int) -> MemberInfo:
        """One present member. Raises MemberLost with the reason if it is not present."""
        seen = self._observed.get(f"{role}-{index}")
        if seen is None:
            raise MemberLost(f"{role}-{index}", "it has no member file")
        if (reason := self.absence(seen.info)) is not None:
            raise MemberLost(seen.info.name, reason)
        return seen.info

    def absence(self, info: MemberInfo) -> str | None:
        """Why this life of a member is not present, or None if it is."""
        seen = self._observed.get(info.name)
        if seen is None:
            return "its member file is gone"
        if seen.info.incarnation != info.incarnation:
            return "another process joined under its name"
        if info.generation != self._generation:
            return f"it is of life {info.generation}, this is life {self._generation}"
        if seen.changed <= self._refused.get(info.incarnation, 0.0):
            return "its port refuses connections"
        if (silent := seen.read - seen.changed) > self._lease_s:
            return f"its lease was not renewed for {silent:.0f} s"
        return None

    def mark_dead(self, incarnation: str) -> None:
        """Notes that this life of a member refused a connection: it is gone unless it renews its lease."""
        self._refused[incarnation] = time.monotonic()

    def _list(self, roles: Collection[str]) -> dict[str, int]:
        """The inodes of the files of `roles`, by member name."""
        with os.scandir(self._path) as entries:
            matches = ((_FILE.fullmatch(entry.name), entry) for entry in entries)
            return {
                match[0][: -len(".json")]: e.inode() for match, e in matches if match and match[1] in roles
            }

    def _is_due(self, name: str, inode: int | None = None) -> bool:
        seen = self._observed.get(name)
        if seen is None or (inode is not None and seen.inode != inode):
            return True
        return time.monotonic() - seen.read >= self._lease_s / 3

    def _observe(self, name: str) -> _Observed | None:
        found = _read(self._path / f"{name}.json")
        if found is None:
            return None
        info, status = found
        now = time.monotonic()
        before = self._observed.get(name)
        same = before is not None and (before.inode, before.mtime_ns) == (status.st_ino, status.st_mtime_ns)
        changed = before.changed if same and before is not None else now
        return _Observed(info, status.st_ino, status.st_mtime_ns, changed, now)

    def _forgive(self, seconds: float) -> None:
        for seen in self._observed.values():
            seen.changed += seconds


def _read(path: Path) -> tuple[MemberInfo, os.stat_result] | None:
    """Reads a member file with four calls: open, fstat, read, close. None if there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        return msgspec.json.decode(os.read(fd, status.st_size), type=MemberInfo), status
    finally:
        os.close(fd)
