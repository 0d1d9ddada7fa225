"""When the member files are read: those of called members now and then, a role's by listing every second.

A member that only calls others by name reads the file of each member that it is connected to once in a
third of a lease, and a file more when a call finds a member absent or a connection ends. That is all: how
many members the run has makes no difference. Only who asks about a whole role lists the folder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from verst.runtime.actors.directory import Directory, MemberInfo


class Following:
    """Readings of a `Directory`, shared by all who ask at the same time. Belongs to one asyncio loop."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._roles: set[str] = set()
        self._roles_read: frozenset[str] = frozenset()
        self._names: set[str] = set()  # whose files the next reading opens
        self._list_roles = False  # whether the next reading lists
        self._reading = asyncio.Lock()
        self._next_reading: asyncio.Task[None] | None = None

    def role(self, role: str) -> None:
        """From now on the members of this role are listed every second."""
        self._roles.add(role)

    def lists(self, role: str) -> bool:
        """Whether the role has been listed since it is followed."""
        return role in self._roles_read

    async def role_read(self, role: str) -> None:
        """Follows a role, and waits for its first listing if there was none yet."""
        self.role(role)
        if not self.lists(role):
            await self.read_roles()

    def suspect(self, name: str) -> None:
        """Something is wrong with this member: the next `keep_up` looks at its file."""
        self._names.add(name)

    async def keep_up(self, connected: Iterable[MemberInfo]) -> None:
        """Every second: reads what is due of the followed roles and of the members we are connected to.

        Most of the time nothing is due for who follows no role, and the file system is left alone.
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
        """All who ask share the next reading, not one that had already begun."""
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
