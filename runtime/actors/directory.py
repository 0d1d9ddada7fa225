"""Who is there: one file per member in the run folder, and leases judged by observed change.

A member writes `members/<role>-<index>.json` by atomic rename and touches it now and then. Readers note
when they last saw it change, by their own clock: the clocks of other hosts and of the file server are not
compared with ours. Time in which the file system did not answer us counts against nobody.

The folder is listed only for who asks about a whole role. A member that calls others by name opens their
files, so what it costs the shared file system does not grow with the run (`following.py` says when).
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
    """A member's file: where it is reached and which life of it is there."""

    role: str
    index: int
    generation: int
    incarnation: str  # unique for each process life
    host: str
    port: int
    pid: int
    node: str = ""  # as `shared_memory.node_key` gives it
    details: dict[str, str | int] = {}

    @property
    def name(self) -> str:
        """As in files and messages: "trainer-3"."""
        return f"{self.role}-{self.index}"

    @property
    def endpoint(self) -> str:
        """As ZeroMQ connects to it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"


def check_role(role: str) -> None:
    """Raises ValueError for a role that could not be in a file's name."""
    if not _ROLE.fullmatch(role):
        raise ValueError(f"role {role!r}: lower-case letters, digits and underscores, a letter first")


class Registration:
    """Our own file: written at join, touched as heartbeat, removed at leave."""

    def __init__(self, folder: RunFolder, info: MemberInfo) -> None:
        self.info = info
        self._path = folder.members / f"{info.name}.json"

    def write(self) -> None:
        """Advertises the member. A file of an earlier life is replaced."""
        write_atomically(self._path, msgspec.json.encode(self.info))

    def renew(self) -> None:
        """Renews the lease. Raises MemberLost when the file is gone or another process has taken the name."""
        holder = self._holder()
        if holder != self.info.incarnation:
            reason = "its file was removed" if holder is None else "another process joined under its name"
            raise MemberLost(self.info.name, reason)
        os.utime(self._path)

    def remove(self) -> None:
        """Takes the file away, unless it is another's by now."""
        if self._holder() == self.info.incarnation:
            self._path.unlink(missing_ok=True)

    def _holder(self) -> str | None:
        found = _read(self._path)
        return None if found is None else found[0].incarnation


class _Observed(msgspec.Struct):
    """What we know of one file. `changed` and `read` are our monotonic clock, `mtime_ns` is only compared."""

    info: MemberInfo
    inode: int
    mtime_ns: int
    changed: float
    read: float


class Directory:
    """The members of this generation that we care about, each as of the last time its file was read."""

    def __init__(self, folder: RunFolder, generation: int, lease_s: float) -> None:
        self._path = folder.members
        self._generation = generation
        self._lease_s = lease_s
        self._observed: dict[str, _Observed] = {}  # by member name
        self._refused: dict[str, float] = {}  # incarnation: when its port refused a connection, monotonic
        self._last_tick = time.monotonic()

    def refresh(self, roles: Collection[str], names: Iterable[str] = ()) -> None:
        """Opens the files of `names`, and with `roles` lists the folder for those.

        Of a listed role it opens the files that are new, renamed over, no longer listed (a cached listing
        may be old), or not read for a third of a lease. Without roles it lists nothing. It does file I/O,
        so call it in a thread, one at a time. Opening a file, rather than stat alone, makes NFS ask the server.
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
        """Notes that we are awake. Call it every second or so: where a call is missing, we were held up."""
        now = time.monotonic()
        if now - self._last_tick > self._lease_s / 3:
            self._forgive(now - self._last_tick)
        self._last_tick = now

    def due(self, names: Iterable[str]) -> list[str]:
        """Those whose files were last read a third of a lease ago."""
        return [name for name in names if self._is_due(name)]

    def members(self, role: str) -> list[MemberInfo]:
        """Those present in a role, by index."""
        present = [seen.info for seen in self._observed.copy().values() if self.absence(seen.info) is None]
        return sorted((info for info in present if info.role == role), key=lambda info: info.index)

    def find(self, role: str, index: int) -> MemberInfo:
        """One present member. Raises MemberLost with the reason why it is not there."""
        seen = self._observed.get(f"{role}-{index}")
        if seen is None:
            raise MemberLost(f"{role}-{index}", "it has no member file")
        if (reason := self.absence(seen.info)) is not None:
            raise MemberLost(seen.info.name, reason)
        return seen.info

    def absence(self, info: MemberInfo) -> str | None:
        """Why this life of a member is not there (any more), or None when it is."""
        seen = self._observed.get(info.name)
        if seen is None:
            return "its member file is gone"
        if seen.info.incarnation != info.incarnation:
            return "another process joined under its name"
        if info.generation != self._generation:
            return f"it is of generation {info.generation}, this is {self._generation}"
        if seen.changed <= self._refused.get(info.incarnation, 0.0):
            return "its port refuses connections"
        if (silent := seen.read - seen.changed) > self._lease_s:
            return f"its lease was not renewed for {silent:.0f} s"
        return None

    def mark_dead(self, incarnation: str) -> None:
        """Notes that nothing answers where this life of a member was: it is gone unless it renews its lease."""
        self._refused[incarnation] = time.monotonic()

    def _list(self, roles: Collection[str]) -> dict[str, int]:
        """The inodes of the files of these roles, by member name."""
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
    """A member file in four calls: open, fstat, read, close. None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(fd)
        return msgspec.json.decode(os.read(fd, status.st_size), type=MemberInfo), status
    finally:
        os.close(fd)
