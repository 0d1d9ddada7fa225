"""Removes old weight versions, but none that is being read or that another version needs.

A reader writes its lease and then looks for the mark `removing`. The remover writes the mark and then looks for leases.
So at least one of the two sees the other and gives way. This holds on local file systems and on Lustre, whose clients
see each other's files at once. An NFS client's view of a folder may be seconds old (mount option `actimeo`), so keep
more versions there than are published in that time.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from verst.sync.versions.folder import INDEX, folders, mark_newest, read_index, versions
from verst.sync.versions.leases import drop_mark, leased, mark

_AWAY = ".removed-"


def keep_newest(root: Path, count: int) -> list[int]:
    """Removes all published versions except the newest `count`, those being read, and the bases of all of these.

    An unpublished version is removed too once a newer one is published. Returns the removed versions, newest first.
    Only one process may call this at a time. Raises ValueError if the index of a version that is kept is damaged.
    """
    if count < 1:
        raise ValueError(f"keep at least the newest version, not {count}")
    for left in root.glob(f"{_AWAY}*"):
        shutil.rmtree(left)
    mark_newest(root)
    published = versions(root)
    kept: set[int] = set()
    for version in published[-count:]:
        kept |= _with_bases(root, version)
    gone = []
    # The newest first, so that a version is visited before the versions that its deltas start from.
    for version, folder in sorted(folders(root), reverse=True):
        if version in kept or not published or version > published[-1]:
            drop_mark(folder)  # left by an interrupted removal
            continue
        mark(folder)
        if leased(folder):
            drop_mark(folder)
            kept |= _with_bases(root, version)
            continue
        # The index goes first: without it the version does not exist, even if the removal stops half-way. Then the
        # folder gets another name, under which no late reader puts a lease.
        (folder / INDEX).unlink(missing_ok=True)
        away = folder.rename(folder.with_name(f"{_AWAY}{uuid.uuid4().hex}"))
        shutil.rmtree(away)
        gone.append(version)
    return gone


def _with_bases(root: Path, version: int) -> set[int]:
    chain: set[int] = set()
    at: int | None = version
    while at is not None and at not in chain:
        chain.add(at)
        at = read_index(root, at).base
    return chain
