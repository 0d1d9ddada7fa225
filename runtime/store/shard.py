"""A store shard: the process that takes in finished prompt groups, and acknowledges those that are on disk.

There is one on each trainer node. It is a process of its own beside the ranks, so that neither a crashed rank
nor a long kernel affects the journal.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from verst.runtime.messages.apis import StoreApi
from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.node.member_process import MemberProcess, say, serve_forever
from verst.runtime.run.ending import CANNOT_WRITE
from verst.runtime.store.journal import Journal


class Store(StoreApi):
    """The actor around one journal. Disk writes run in one thread, in the order of the pushes."""

    def __init__(self, journal: Journal, shard: int) -> None:
        self._journal = journal
        self._shard = shard
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self.fault: OSError | None = None  # why the journal cannot be written; the shard is then useless
        self.faulty = asyncio.Event()

    async def push(self, group: Group) -> GroupMeta:
        group.validate()
        try:
            return await self._on_disk_thread(self._append, group)
        except OSError as error:
            self.fault = error
            self.faulty.set()
            raise

    async def fetch(self, ids: list[int]) -> list[Group]:
        return await self._on_disk_thread(lambda: [self._journal.read(id) for id in ids])

    async def inventory(self) -> list[GroupMeta]:
        return await self._on_disk_thread(
            lambda: [self._journal.read(id).meta(self._shard) for id in self._journal]
        )

    async def discard(self, ids: list[int]) -> None:
        await self._on_disk_thread(self._journal.discard, ids)

    def _append(self, group: Group) -> GroupMeta:
        """Journals a group, unless the journal has it already: then the first one counts."""
        if group.id in self._journal:
            return self._journal.read(group.id).meta(self._shard)
        self._journal.append(group)
        return group.meta(self._shard)

    async def _on_disk_thread(self, function, *args):
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *args)


async def main(process: MemberProcess) -> None:
    """Serves shard `process.index` until the node agent ends the process."""
    journal = Journal(process.folder.samples / f"shard-{process.index}", process.generation)
    for torn in journal.torn:
        process.folder.event("torn_record", message=f"journal of shard {process.index}: {torn}")
    store = Store(journal, process.index)
    serving = asyncio.ensure_future(serve_forever(process, "store", store))
    faulty = asyncio.ensure_future(store.faulty.wait())
    await asyncio.wait({serving, faulty}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        return serving.result()
    say(f"store shard {process.index} cannot journal a group: {store.fault}")
    sys.exit(CANNOT_WRITE)


if __name__ == "__main__":
    MemberProcess.run(main)
