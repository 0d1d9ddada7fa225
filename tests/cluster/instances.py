"""Which clusters there are on this machine: each has a number, and a record of the process that owns it.

The number makes a cluster's names and its address range its own (`verst17node3`, 10.213.17.3), so that several
run side by side, and so that whatever carries the name of a dead one can be told from a live one's and removed.
The records lie in /run/verst-slurm; changes to them, to /etc/hosts and to the users are made under one lock.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

RECORDS = Path("/run/verst-slurm")
HOSTS = Path("/etc/hosts")
# Not in pytest's folders: those are closed to a second user, who must read slurm.conf.
FOLDERS = Path("/tmp")
NUMBERS = 250
NODES = 6


@dataclass(frozen=True)
class Instance:
    """One cluster: its number, the process that owns it, and the folder that holds its files."""

    number: int
    pid: int
    started: float
    folder: str

    @property
    def prefix(self) -> str:
        return f"verst{self.number}"

    @property
    def bridge(self) -> str:
        return f"{self.prefix}bridge"

    @property
    def login_address(self) -> str:
        """Where the host itself, the login node with the controller, is reached from the nodes."""
        return f"10.213.{self.number}.254"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes' names; each is also the name of the interface inside the node's network namespace."""
        return tuple(f"{self.prefix}node{k}" for k in range(1, NODES + 1))

    def address(self, node: str) -> str:
        return f"10.213.{self.number}.{self._index(node)}"

    def veth(self, node: str) -> str:
        """The host's end of the node's cable."""
        return f"{self.prefix}veth{self._index(node)}"

    def between(self, node: str) -> tuple[str, str]:
        """Two more ends, for what may be put between the node's cable and the bridge (`slow_links.py`)."""
        return f"{self.prefix}veth1{self._index(node)}", f"{self.prefix}veth2{self._index(node)}"

    def _index(self, node: str) -> int:
        if node not in self.nodes:
            raise ValueError(f"there is no node {node!r}; the nodes are {', '.join(self.nodes)}")
        return self.nodes.index(node) + 1

    @property
    def slurm_conf(self) -> str:
        return f"{self.folder}/slurm.conf"

    @property
    def record(self) -> Path:
        return RECORDS / f"{self.number}.json"

    @property
    def hosts_mark(self) -> str:
        """What ends each of its lines in /etc/hosts."""
        return f"# {self.prefix} of the tests"

    def owner_lives(self) -> bool:
        return started_at(self.pid) == self.started


def started_at(pid: int) -> float | None:
    """When this process started, which tells it from a later one of the same id; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


@contextmanager
def machine_lock() -> Iterator[None]:
    """One at a time among all the clusters of this machine. A lock on a folder leaves no lock file behind."""
    descriptor = os.open(RECORDS.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def recorded() -> list[Instance]:
    """Every cluster that has a record, alive or not; call it under the lock."""
    paths = sorted(RECORDS.glob("*.json")) if RECORDS.is_dir() else []
    return [Instance(**json.loads(path.read_text())) for path in paths]


def claim() -> Instance:
    """A number that no other cluster has, for this process, put on record."""
    with machine_lock():
        taken = {instance.number for instance in recorded()}
        for attempt in range(NUMBERS):
            number = (os.getpid() + attempt) % NUMBERS + 1
            started = started_at(os.getpid())
            assert started is not None
            instance = Instance(number, os.getpid(), started, f"{FOLDERS}/verst-slurm-{os.getpid()}-{number}")
            if number in taken or Path("/sys/class/net", instance.bridge).exists() or _routed(number):
                continue
            RECORDS.mkdir(exist_ok=True)
            unfinished = instance.record.with_suffix(".new")
            unfinished.write_text(json.dumps(asdict(instance)))
            unfinished.rename(instance.record)
            return instance
    raise RuntimeError(f"all {NUMBERS} cluster numbers are taken; see {RECORDS}")


def _routed(number: int) -> bool:
    """Whether this machine already has a route of its own for the number's address range."""
    destination = f"{number << 16 | 213 << 8 | 10:08X}"
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return any(line.split()[1] == destination for line in routes)


def forget(instance: Instance) -> None:
    """Drop the record, and the folder of records with the last one; call it under the lock."""
    instance.record.unlink(missing_ok=True)
    if RECORDS.is_dir() and not any(RECORDS.iterdir()):
        RECORDS.rmdir()


def add_to_hosts(instance: Instance) -> None:
    """Give the nodes' names their addresses, for the host and, as the file system is shared, for every node."""
    with machine_lock():
        lines = [f"{instance.address(node)} {node} {instance.hosts_mark}" for node in instance.nodes]
        _rewrite_hosts([*_hosts_without(instance), *lines])


def remove_from_hosts(instance: Instance) -> None:
    """Call it under the lock."""
    kept = _hosts_without(instance)
    if kept != HOSTS.read_text().splitlines():
        _rewrite_hosts(kept)


def _hosts_without(instance: Instance) -> list[str]:
    return [line for line in HOSTS.read_text().splitlines() if not line.endswith(instance.hosts_mark)]


def _rewrite_hosts(lines: Iterable[str]) -> None:
    """In place and in one write: the file may be a mount, and others must never read it half empty."""
    content = "".join(f"{line}\n" for line in lines).encode()
    descriptor = os.open(HOSTS, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)
