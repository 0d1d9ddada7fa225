"""Defines plan.json: which processes run on which node. The launcher writes it, node agents read it.

To an agent, a process is only a role, a command, an environment and a rule for what its end means for the
run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from verst.runtime.run.folder import write_atomically


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Gives a process its own CPUs. `node/affinity.py` decides which."""

    cpus: int | None = None  # how many; None: an equal share
    turn: int = 0  # processes of different turns do not work at the same time
    # Ranks that compute in the process and share its CPUs. OMP_NUM_THREADS is for each of them.
    ranks: int = 1
    near_nics: bool = False


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a node.

    `on_exit` says what its end means for the run:

    - "ends_run": exit code 0 is the run's good end, any other its failure (the controller).
    - "fails_run": it must live as long as the run (ranks, store shards).
    - "restart": it is started again up to `max_restarts` times within the run, then it fails the run
      (rollout workers).
    - "restart_always": it is started again whenever it ends, however often, even after exit code 0.
    - "ignored": the run goes on without it (processes that only display something).
    """

    role: str  # "controller" | "trainer" | "store" | "rollout"
    index: int  # unique within the role over the whole run: a trainer's rank, an engine's number
    argv: list[str]
    # Added to the agent's environment. Without OMP_NUM_THREADS, the process's CPUs decide on it.
    env: dict[str, str] = {}
    gpus: list[int] | None = None  # places among the node's GPUs; None: as in `env`
    pin: Pin | None = None  # None: it may run on any CPU
    on_exit: Literal["ends_run", "fails_run", "restart", "restart_always", "ignored"] = "fails_run"
    max_restarts: int = 0
    # The process may be a fork of the agent (`node/forking.py`): argv is [python, "-m", module, …] with the
    # agent's own interpreter. For many small processes, each with one OpenMP thread.
    forks: bool = False

    @property
    def name(self) -> str:
        """Its name in logs and messages: "trainer-3"."""
        return f"{self.role}-{self.index}"


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The processes that one node agent starts, in order."""

    processes: list[Process]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything runs: `groups["trainer"][2]` is the third node of the trainer group."""

    name: str
    groups: dict[str, list[Node]]
    log_bytes: int = 64 << 20  # a larger log is set aside
    logs_kept: int = 3  # how many set-aside logs are kept for each process
    host: str = "127.0.0.1"  # the address that members advertise, or an interface's name, or "auto"
    one_machine: bool = False  # all nodes are agents on the same machine, which share its CPUs

    def neighbours(self, group: str, node: int) -> list[Process]:
        """The processes on the machine of one node, in an order that is the same for all of its agents."""
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
        """Reads plan.json. Raises msgspec.ValidationError if the file is not a plan."""
        return msgspec.json.decode(path.read_bytes(), type=Plan)
