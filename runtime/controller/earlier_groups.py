"""Takes over the prompt groups that earlier lives of the run have left in the store."""

from __future__ import annotations

from verst.runtime.controller import data_record
from verst.runtime.controller.data_record import DataRecord
from verst.runtime.controller.stores import Stores
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.run.folder import RunFolder


async def take_over(
    stores: Stores, shards: int, folder: RunFolder, rows: DataRecord, *, trained: bool, accept: bool
) -> list[GroupMeta]:
    """Returns the groups to train on. Discards those that were made from other rows, and records the present `rows`.

    `trained` and `accept` are as in `data_record.compare`, which may raise DataError. The rows of an interrupted
    stage without engines (negative numbers) are discarded, too: they are made again.
    """
    changed = data_record.compare(folder, rows, trained, accept)
    found = await stores.inventory(shards)
    others = any(section.startswith("data.train") for section in changed)
    kept = [] if others else [meta for meta in found if meta.id >= 0]
    ids = {meta.id for meta in kept}
    if left := [meta.id for meta in found if meta.id not in ids]:
        await stores.discard(left)
    data_record.write(folder, rows, changed, dropped=sum(id >= 0 for id in left))
    return kept
