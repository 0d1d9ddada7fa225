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
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan
from verst.runtime.store.config import RecordConfig
from verst.runtime.store.journal import Journal
from verst.runtime.store.recording import Recorded, shard_folders


class Store(StoreApi):
    """The actor around one journal. Disk writes run in one thread, in the order of the pushes."""

    def __init__(self, journal: Journal, shard: int, recorded: Recorded | None = None) -> None:
        """`recorded`: groups of another run, which this shard serves, too."""
        self._journal = journal
        self._shard = shard
        self._recorded = recorded
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
        return await self._on_disk_thread(lambda: [self._read(id) for id in ids])

    async def inventory(self) -> list[GroupMeta]:
        return await self._on_disk_thread(
            lambda: [self._journal.read(id).meta(self._shard) for id in self._journal]
        )

    async def recording(self) -> list[GroupMeta]:
        recorded = self._recorded
        if recorded is None:
            return []
        return await self._on_disk_thread(lambda: [recorded.read(id).meta(self._shard) for id in recorded])

    async def discard(self, ids: list[int]) -> None:
        await self._on_disk_thread(self._journal.discard, ids)

    def _append(self, group: Group) -> GroupMeta:
        """Journals a group, unless the journal has it already: then the first one counts."""
        if group.id in self._journal:
            return self._journal.read(group.id).meta(self._shard)
        self._journal.append(group)
        return group.meta(self._shard)

    def _read(self, id: int) -> Group:
        if self._recorded is not None and id in self._recorded:
            return self._recorded.read(id)
        return self._journal.read(id)

    async def _on_disk_thread(self, function, *args):
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *args)


async def main(process: MemberProcess) -> None:
    """Serves shard `process.index` until the node agent ends the process."""
    config = process.folder.section("record", RecordConfig)
    own = process.folder.samples / f"shard-{process.index}"
    journal = Journal(own, process.generation, config.keep)
    for torn in journal.torn:
        process.folder.event("torn_record", message=f"journal of shard {process.index}: {torn}")
    store = Store(journal, process.index, _recorded(process, config))
    serving = asyncio.ensure_future(serve_forever(process, "store", store))
    faulty = asyncio.ensure_future(store.faulty.wait())
    await asyncio.wait({serving, faulty}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        return serving.result()
    say(f"store shard {process.index} cannot journal a group: {store.fault}")
    sys.exit(CANNOT_WRITE)


def _recorded(process: MemberProcess, config: RecordConfig) -> Recorded | None:
    """This shard's part of the recording that the run trains on: every n-th of its shards, for n shards here."""
    if config.source is None:
        return None
    shards = Plan.read(process.folder.plan).count("store")
    return Recorded(shard_folders(RunFolder(config.source).samples)[process.index :: shards])


if __name__ == "__main__":
    MemberProcess.run(main)
