"""The file `ended` of a run folder, by which a node agent tells the others that the run has ended.

It is written by the agent of the process that ended this life of the run, well or badly. The other agents see
it at their next look and stop their processes. The file belongs to one generation; one of an older generation
means nothing. On a full disk it is written into space that was set aside when the generation began.
"""

from __future__ import annotations

import errno
import os
import secrets

import msgspec

from verst.runtime.run.folder import SPARE_BYTES, RunFolder, write_atomically
from verst.sync.files.durable import naming, write_whole

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

# Exit codes of the controller, besides 0 (the run is done) and 1 (it failed; another try may succeed).
STOPPED = 75  # EX_TEMPFAIL: it was asked to stop, has saved, and wants to be resumed
HOPELESS = 65  # EX_DATAERR: the recipe, its data or its hooks are at fault, so another try would fail too
# Exit code of a rollout worker: the trainer has been away for too long.
GAVE_UP = 69  # EX_UNAVAILABLE
# Exit code of a store shard: the run folder's disk is full or not writable.
CANNOT_WRITE = 74  # EX_IOERR


class RunEnd(msgspec.Struct, frozen=True):
    """Why and how a life of the run ended."""

    code: int  # exit code; 0 for a good end
    reason: str
    generation: int
    resumes: bool = False  # whether another life follows by itself


def read_end(folder: RunFolder, generation: int) -> RunEnd | None:
    """The end of this generation, or None if it has not ended."""
    end = last_end(folder)
    return end if end is not None and end.generation == generation else None


def last_end(folder: RunFolder) -> RunEnd | None:
    """The last end that was reported, of whichever life, or None."""
    try:
        return msgspec.json.decode((folder.root / "ended").read_bytes(), type=RunEnd)
    except FileNotFoundError:
        return None


def write_end(folder: RunFolder, end: RunEnd) -> RunEnd:
    """Reports the end of the run, unless another agent was first. Returns the end that holds."""
    earlier = read_end(folder, end.generation)
    if earlier is not None:
        return earlier
    try:
        write_atomically(folder.root / "ended", msgspec.json.encode(end))
    except OSError as error:
        if error.errno not in NO_SPACE or not _write_into_spare(folder, end):
            raise
    return end


def _write_into_spare(folder: RunFolder, end: RunEnd) -> bool:
    """Writes the end into the space that was set aside. Returns False if that has been used already."""
    mine = folder.spare.with_name(f"{folder.spare.name}.{secrets.token_hex(4)}")
    try:
        os.rename(folder.spare, mine)  # so that no other agent writes into it too
    except FileNotFoundError:
        return False
    reason = end.reason.encode()[: SPARE_BYTES // 8].decode(errors="ignore")  # JSON may need 6 bytes for one
    data = msgspec.json.encode(msgspec.structs.replace(end, reason=reason))
    fd = os.open(mine, os.O_WRONLY)
    try:
        with naming(mine):
            write_whole(fd, data.ljust(SPARE_BYTES))
            os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(mine, folder.root / "ended")
    return True


def reopen(folder: RunFolder, end: RunEnd) -> None:
    """Marks an end as one that another life follows, because the run is being resumed by hand."""
    write_atomically(folder.root / "ended", msgspec.json.encode(msgspec.structs.replace(end, resumes=True)))


def close(folder: RunFolder, end: RunEnd, reason: str) -> None:
    """Marks an end as final: no other life follows it after all."""
    closed = msgspec.structs.replace(end, resumes=False, reason=reason)
    write_atomically(folder.root / "ended", msgspec.json.encode(closed))
