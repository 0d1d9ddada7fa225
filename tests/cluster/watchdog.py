"""Outlives the test process and removes its cluster if it died without doing so, were it by SIGKILL.

python -m tests.cluster.watchdog <number of the cluster>
"""

from __future__ import annotations

import os
import select
import sys

from tests.cluster import leftovers
from tests.cluster.instances import machine_lock, recorded


def main(number: int) -> None:
    with machine_lock():
        mine = [instance for instance in recorded() if instance.number == number]
    for instance in mine:
        try:
            owner = os.pidfd_open(instance.pid)
        except ProcessLookupError:
            owner = None
        if owner is not None and instance.owner_lives():
            select.select([owner], [], [])
        leftovers.remove(instance)


if __name__ == "__main__":
    main(int(sys.argv[1]))
