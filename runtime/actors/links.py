"""A member's connections to the members that it calls, at most one to each life of a member."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import zmq

from verst.runtime.actors.directory import Directory, MemberInfo
from verst.runtime.actors.following import Following
from verst.runtime.actors.link import Link, Sender
from verst.runtime.actors.membership import Membership
from verst.runtime.actors.memory_pool import KEPT_S, POOL
from verst.runtime.actors.security import Keys

log = logging.getLogger(__name__)

_AWAKE_S = 1.0  # how often we note that this process runs


class Links:
    """Makes links, watches whether the members at their other ends are present, and ends them."""

    def __init__(
        self,
        context: zmq.Context[Any],
        keys: Keys,
        me: Sender,
        membership: Membership,
        directory: Directory,
        following: Following,
    ) -> None:
        self.me = me
        self.open: dict[str, Link] = {}  # by the target's incarnation
        self._context = context
        self._keys = keys
        self._membership = membership
        self._directory = directory
        self._following = following

    def to(self, target: MemberInfo) -> Link:
        """The link to this life of a member. Connects if there is none."""
        return self.open.get(target.incarnation) or self._connect(target)

    async def follow(self, every_s: float) -> None:
        """Ends links whose members are gone, until cancelled. Also frees unused shared memory of past calls."""
        while True:
            try:
                await self._following.keep_up([link.target for link in self.open.values()])
            except OSError as error:
                log.warning("%s could not read the members' files: %s", self.me.name, error)
            for link in list(self.open.values()):
                if (reason := self._directory.absence(link.target)) is not None:
                    link.end(reason)
            POOL.tidy(KEPT_S)
            await asyncio.sleep(every_s)

    async def notice_pauses(self) -> None:
        """Gives calls more time when this process was suspended or held up, until cancelled.

        Else a process that Slurm suspends for a minute would take its own sleep for the others' silence.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(_AWAKE_S)
            held_up = loop.time() - began - _AWAKE_S
            if held_up > _AWAKE_S:
                log.warning("%s did not run for %.0f s: calls get so much longer", self.me.name, held_up)
                for link in list(self.open.values()):
                    link.forgive(held_up)

    def end(self, reason: str) -> None:
        """Ends all links."""
        for link in list(self.open.values()):
            link.end(reason)

    def _connect(self, target: MemberInfo) -> Link:
        self._membership.check()  # a socket made after we left would keep the ZeroMQ context open
        link = Link(self._context, self._keys, self.me, target, self._on_end, self._membership.suspect_stale)
        self.open[target.incarnation] = link
        return link

    def _on_end(self, link: Link, reason: str, refused: bool) -> None:
        if self.open.get(link.target.incarnation) is link:
            del self.open[link.target.incarnation]
        if refused:
            self._directory.mark_dead(link.target.incarnation)
        elif not (link.connected and link.sound) or self._membership.is_ending:
            return
        elif self._directory.absence(link.target) is None:
            # The line broke, or the member died: then its port will refuse the new connection at once.
            self._connect(link.target)
            self._following.suspect(link.target.name)
