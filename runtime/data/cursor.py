"""Maps a prompt group's number to a row of the data. A pure function, so that a resumed run needs no state."""

from __future__ import annotations

import functools

import numpy as np


def row_of(group: int, rows: int, seed: int, shuffle: bool = True) -> int:
    """The row (0 <= row < rows) of group number `group`.

    Groups go through the file epoch by epoch. Each epoch has its own order, which depends only on `seed` and the
    epoch's number.
    """
    epoch, place = divmod(group, rows)
    return int(_order(rows, seed, epoch)[place]) if shuffle else place


@functools.lru_cache(maxsize=64)  # a few passes of each source
def _order(rows: int, seed: int, epoch: int) -> np.ndarray:
    # NumPy guarantees that RandomState's stream never changes. Generator's may change between versions.
    return np.random.RandomState([seed & 0xFFFFFFFF, epoch]).permutation(rows)
