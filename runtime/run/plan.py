"""plan.json: which processes run on which node. Written by the launcher, read by the node agents.

The agent knows nothing of what it starts: a process is a role, a command, an environment and what its
end means for the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from verst.runtime.run.folder import write_atomically


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """That a process runs on CPUs of its own; `affinity.py` says on which."""

    cpus: int | None = None  # so many; None: an equal share
    turn: int = 0  # processes of different turns do not work at the same time
    ranks: int = 1  # of those that compute, which share its CPUs; OMP_NUM_THREADS is for each
    near_nics: bool = False


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a node.

    `on_exit` says what its end means. "ends_run": exit 0 is the run's good end, anything else its failure
    (the controller). "fails_run": it must live as long as the run (ranks, store shards). "restart": started
    again up to `max_restarts` times within the run, then it fails the run (rollout workers). "restart_always": started
    again whenever it ends, with exit code 0 too, however often. "ignored": the run goes on without it (what only
    shows things).
    """

    role: str  # "controller" | "trainer" | "store" | "rollout"
    index: int  # unique within the role over the whole run: a trainer's rank, an engine's number
    argv: list[str]
    env: dict[
        str, str
    ] = {}  # added to the agent's environment; without OMP_NUM_THREADS its CPUs say how many
    gpus: list[int] | None = None  # which of the node's own, by place; None: as `env` says
    pin: Pin | None = None  # None: anywhere
    on_exit: Literal["ends_run", "fails_run", "restart", "restart_always", "ignored"] = "fails_run"
    max_restarts: int = 0
    # argv is [python, "-m", module, …] with the agent's own interpreter: the process may be a fork of the agent
    # (`forking.py`). For many small ones, with one thread of OpenMP each.
    forks: bool = False

    @property
    def name(self) -> str:
        """As in logs and messages: "trainer-3"."""
        return f"{self.role}-{self.index}"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The processes that one node agent starts, in this order."""

    processes: list[Process]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything runs: `groups["trainer"][2]` is the third node of the trainer group."""

    name: str
    groups: dict[str, list[Node]]
    log_bytes: int = 64 << 20  # a larger log is set aside
    logs_kept: int = 3  # logs set aside for each process
    host: str = "127.0.0.1"  # the address that members advertise; or an interface's name, or "auto"
    one_machine: bool = False  # all nodes are agents side by side, which share its CPUs

    def neighbours(self, group: str, node: int) -> list[Process]:
        """The processes on the machine of one node, in an order that all of its agents agree on."""
        if not self.one_machine:
            return self.groups[group][node].processes
        return [process for nodes in self.groups.values() for n in nodes for process in n.processes]

    def count(self, role: str) -> int:
        """How many processes of a role the run has."""
        return sum(p.role == role for nodes in self.groups.values() for n in nodes for p in n.processes)

    def write(self, path: Path) -> None:
        """Writes plan.json."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=2))

    @staticmethod
    def read(path: Path) -> Plan:
        """Reads plan.json. Raises msgspec.ValidationError when it is not one."""
        return msgspec.json.decode(path.read_bytes(), type=Plan)
