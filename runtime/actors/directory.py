"""Who is there: one file per member in the run folder, and leases judged by observed change.

A member writes `members/<role>-<index>.json` by atomic rename and touches it now and then. Readers note
when they last saw it change, by their own clock: the clocks of other hosts and of the file server are not
compared with ours. Time in which the file system did not answer us counts against nobody.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from verst.runtime.actors.errors import MemberLost
from verst.runtime.run_folder import RunFolder, write_atomically

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
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=MemberInfo).incarnation
        except FileNotFoundError:
            return None


class _Observed(msgspec.Struct):
    """What we know of one file. `changed` and `read` are our monotonic clock, `mtime_ns` is only compared."""

    info: MemberInfo
    inode: int
    mtime_ns: int
    changed: float
    read: float


class Directory:
    """The members of this generation in the roles we care about, as of the last refresh."""

    def __init__(self, folder: RunFolder, generation: int, lease_s: float) -> None:
        self._path = folder.members
        self._generation = generation
        self._lease_s = lease_s
        self._observed: dict[str, _Observed] = {}  # by member name
        self._refused: dict[str, float] = {}  # incarnation: when its port refused a connection, monotonic
        self._last_refresh = time.monotonic()

    def refresh(self, roles: Iterable[str]) -> None:
        """Lists the folder; reads the files that are new, renamed over, or not read for a third of a lease.

        It does file I/O, so call it in a thread, one at a time. Opening a file, rather than stat alone, makes
        NFS ask the server.
        """
        roles = frozenset(roles)
        started = time.monotonic()
        if started - self._last_refresh > self._lease_s / 3:  # we, or the file system, were held up
            self._forgive(started - self._last_refresh)
        observed: dict[str, _Observed] = {}
        with os.scandir(self._path) as entries:
            for entry in entries:
                match = _FILE.fullmatch(entry.name)
                if match is None or match[1] not in roles:
                    continue
                name = entry.name.removesuffix(".json")
                seen = self._observe(Path(entry.path), entry.inode(), self._observed.get(name))
                if seen is not None:
                    observed[name] = seen
        self._observed = observed
        self._last_refresh = time.monotonic()
        if self._last_refresh - started > self._lease_s / 3:
            self._forgive(self._last_refresh - started)

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

    def _observe(self, path: Path, inode: int, before: _Observed | None) -> _Observed | None:
        now = time.monotonic()
        if before is not None and before.inode == inode and now - before.read < self._lease_s / 3:
            return before
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                info = msgspec.json.decode(file.read(), type=MemberInfo)
        except FileNotFoundError:  # it left between the listing and here
            return None
        renewed = before is None or (before.inode, before.mtime_ns) != (status.st_ino, status.st_mtime_ns)
        changed = now if renewed or before is None else before.changed
        return _Observed(info, status.st_ino, status.st_mtime_ns, changed, now)

    def _forgive(self, seconds: float) -> None:
        for seen in self._observed.values():
            seen.changed += seconds
