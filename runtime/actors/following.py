"""Decides when member files are read: those of called members rarely, those of a followed role each second.

A member that only calls others by name reads the file of each member that it is connected to every third of a
lease, and one file more when a call finds a member absent or a connection ends. So its file reads do not
depend on how many members the run has. Only members that ask about a whole role list the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from verst.runtime.actors.directory import Directory, MemberInfo


class Following:
    """Reads a `Directory`; requests at the same time share one reading. Belongs to one asyncio loop."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._roles: set[str] = set()
        self._roles_read: frozenset[str] = frozenset()
        self._names: set[str] = set()  # members whose files the next reading opens
        self._list_roles = False  # whether the next reading lists the followed roles
        self._reading = asyncio.Lock()
        self._next_reading: asyncio.Task[None] | None = None

    def role(self, role: str) -> None:
        """Follows a role: its members are listed every second from now on."""
        self._roles.add(role)

    def lists(self, role: str) -> bool:
        """Whether the role is followed and has been listed at least once."""
        return role in self._roles_read

    async def role_read(self, role: str) -> None:
        """Follows a role, and waits for its first listing if there has been none."""
        self.role(role)
        if not self.lists(role):
            await self.read_roles()

    def suspect(self, name: str) -> None:
        """Makes the next `keep_up` read this member's file, because something seems wrong with the member."""
        self._names.add(name)

    async def keep_up(self, connected: Iterable[MemberInfo]) -> None:
        """Reads the files that are due, of followed roles and connected members. Call it every second.

        For a member that follows no role, mostly nothing is due, and the file system is left alone.
        """
        self._directory.tick()
        self._names.update(self._directory.due(info.name for info in connected))
        self._list_roles = self._list_roles or bool(self._roles)
        if self._list_roles or self._names:
            await self._share_reading()

    async def read(self, name: str) -> None:
        """Reads one member's file, now."""
        self._names.add(name)
        await self._share_reading()

    async def read_roles(self) -> None:
        """Lists the followed roles, now."""
        self._list_roles = True
        await self._share_reading()

    async def _share_reading(self) -> None:
        """Waits for the next reading, shared by all callers. One that has already begun does not count."""
        if self._next_reading is None:
            self._next_reading = asyncio.get_running_loop().create_task(self._read())
        await asyncio.shield(self._next_reading)

    async def _read(self) -> None:
        async with self._reading:
            self._next_reading = None
            roles = frozenset(self._roles if self._list_roles else ())
            names, self._names, self._list_roles = self._names, set(), False
            await asyncio.to_thread(self._directory.refresh, roles, names)
            self._roles_read |= roles
