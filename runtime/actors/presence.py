"""Finds the other members of the run, one by name or all of a role, and waits for them to join."""

from __future__ import annotations

import asyncio

from verst.runtime.actors.directory import Directory, MemberInfo
from verst.runtime.actors.errors import CallTimeout, MemberLost
from verst.runtime.actors.following import Following
from verst.runtime.actors.links import Links
from verst.runtime.actors.membership import Membership


class Presence:
    """Looks members up in the member files."""

    def __init__(
        self,
        membership: Membership,
        directory: Directory,
        following: Following,
        links: Links,
        look_s: float,
        where: object,
    ) -> None:
        """`look_s`: the longest pause between two looks for one member. `where`: the folder, for messages."""
        self._membership = membership
        self._directory = directory
        self._following = following
        self._links = links
        self._look_s = look_s
        self._where = where
        self._loop = asyncio.get_running_loop()

    def members(self, role: str) -> list[MemberInfo]:
        """The members of a role that were present at the last look, by index. Follows the role from then on."""
        self._following.role(role)
        return self._directory.members(role) if self._following.lists(role) else []

    async def present(self, role: str) -> list[MemberInfo]:
        """The members of a role that are present now, by index."""
        await self._following.role_read(role)
        return self._directory.members(role)

    async def find(self, role: str, index: int, what: str, timeout: float) -> MemberInfo:
        """Finds one member. Raises MemberLost if it is not present, and CallTimeout, naming `what`."""
        self._membership.check()
        try:
            target = self._directory.find(role, index)
        except MemberLost:
            pass  # it may have joined since its file was read
        else:
            if target.incarnation in self._links.open or self._following.lists(role):
                return target  # we follow it, so this is recent
        try:
            async with asyncio.timeout(timeout):
                await self._following.read(f"{role}-{index}")
        except TimeoutError:
            raise CallTimeout(f"{what} (reading {self._where})", timeout) from None
        return self._directory.find(role, index)

    async def wait_for_one(self, role: str, index: int, timeout: float) -> MemberInfo:
        """Waits until this member is present, by reading only its file. Raises CallTimeout."""
        name = f"{role}-{index}"
        deadline = self._loop.time() + timeout
        while True:
            left_s = deadline - self._loop.time()
            try:
                return await self.find(role, index, name, max(left_s, 0.1))
            except MemberLost as error:
                if self._membership.is_ending:
                    raise
                if left_s <= 0:
                    raise CallTimeout(f"waiting for {name} ({error.reason}):", timeout) from None
            await asyncio.sleep(_pause_s(timeout, left_s, self._look_s))

    async def wait_for(self, role: str, count: int, timeout: float) -> list[MemberInfo]:
        """Waits until members 0 … count-1 of a role are present. Raises CallTimeout naming those missing."""
        self._following.role(role)
        deadline = self._loop.time() + timeout
        while True:
            await self._following.read_roles()
            present = [info for info in self._directory.members(role) if info.index < count]
            if len(present) == count:
                return present
            if (left_s := deadline - self._loop.time()) <= 0:
                missing = sorted(set(range(count)) - {info.index for info in present})
                names = ", ".join(f"{role}-{index}" for index in missing[:10])
                more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
                raise CallTimeout(f"waiting for {count} members of {role}: missing {names}{more}:", timeout)
            await asyncio.sleep(_pause_s(timeout, left_s, 0.2))


def _pause_s(timeout: float, left_s: float, most_s: float) -> float:
    """The pause before the next look: a tenth of the time waited so far, so that a long wait costs little."""
    return min(max(0.01, (timeout - left_s) / 10), most_s, max(0.0, left_s))
