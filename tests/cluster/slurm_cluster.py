"""A real Slurm of six nodes on this one machine, for tests: `with SlurmCluster() as cluster: ...`.

Each node's slurmd and jobs have a network and a host name of their own; the file system is shared by all. The host
is the login node: commands run there with `cluster.run("sbatch", ...)`, or with `cluster.env` by other means. Nodes
pretend to have 8 CPUs, 64 GB and 4 GPUs each. Nodes can be cut off, killed and started again.

Two clusters may run side by side, and nothing of one is left afterwards, even if the test process is killed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster import database, instances, leftovers, queries, slurm_conf
from tests.cluster.login_node import LoginNode
from tests.cluster.namespaces import Network
from tests.cluster.slow_links import SlowLinks
from tests.cluster.slurm_conf import Options

REPOSITORY = Path(__file__).parents[2]
STARTED_WITHIN_S = 60.0
OWN_MEMORY = 'mount -t tmpfs -o mode=1777 shm /dev/shm && exec "$@"'
OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_")


class SlurmCluster(LoginNode):
    """Started by `start`, or on entry as a context manager; gone after `stop`."""

    def __init__(self, options: Options | None = None, *, keep_logs_in: Path | None = None) -> None:
        self.options = options or Options()
        self._keep_logs_in = keep_logs_in
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._started = False
        self._network: Network | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when all nodes are idle; cleans up after clusters whose owner has died, first of all."""
        leftovers.remove_dead_instances()
        self.instance = instances.claim()
        self.nodes = self.instance.nodes
        self.folder = Path(self.instance.folder)
        self.home = self.folder / "home"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_JOB)}
        self.env["SLURM_CONF"] = self.instance.slurm_conf
        self._watchdog = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.cluster.watchdog", str(self.instance.number)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started = True
        try:
            self.folder.mkdir()
            self.folder.chmod(0o755)
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def _start_daemons(self) -> None:
        self._network = Network(self.instance, self.env)
        instances.add_to_hosts(self.instance)
        dbd_port = slurm_conf.free_port(self.instance, 1) if self.options.accounting else None
        slurm_conf.write(self.instance, self.options, dbd_port)
        self._start_munge()
        if dbd_port is not None:
            self._start_accounting(dbd_port)
        self._start_controller()
        for node in self.nodes:
            self._start_slurmd(node)
        self.wait_for(
            lambda: self._daemons_live() and set(self.node_states().values()) == {"idle"},
            "six idle nodes",
            STARTED_WITHIN_S,
        )

    def _start_munge(self) -> None:
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        self._spawn("munged", ["munged", "--foreground", f"--socket={self.folder}/munge.socket", *files])
        self.wait_for(
            lambda: self._daemons_live() and (self.folder / "munge.socket").exists(), "munged's socket"
        )

    def _start_accounting(self, port: int) -> None:
        database.write_slurmdbd_conf(self.instance, port)
        self._spawn("mariadbd", database.mariadb_command(self.instance))
        self._await_port(database.PORT, "MariaDB")
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        self._await_port(port, "slurmdbd")
        self.run("sacctmgr", "--immediate", "add", "cluster", self.instance.prefix)

    def _await_port(self, port: int, what: str) -> None:
        address = (self.instance.login_address, port)
        self.wait_for(
            lambda: self._daemons_live() and queries.listens(address),
            f"{what} on {address}",
            STARTED_WITHIN_S,
        )

    def _spawn(self, name: str, argv: list[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                argv,
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _start_controller(self) -> None:
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", self.instance.slurm_conf])

    def _daemons_live(self) -> bool:
        """True, or an error with the end of its output if a daemon has ended by itself."""
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                output = (self.folder / f"{name}.out").read_text(errors="replace")
                raise RuntimeError(f"{name} ended with {daemon.returncode}: {output[-2000:]}")
        return True

    def stop(self) -> None:
        """Leaves nothing of the cluster, whatever runs on it; harmless when it does not run."""
        if not self._started:
            return
        if self._keep_logs_in is not None and (self.folder / "log").is_dir():
            shutil.copytree(self.folder / "log", self._keep_logs_in, dirs_exist_ok=True)
        leftovers.remove(self.instance)
        for daemon in self._daemons.values():
            daemon.wait(timeout=10)
        if self._network is not None:
            self._network.reap()
            self._network = None
        self._daemons.clear()
        self._watchdog.kill()
        self._watchdog.wait(timeout=10)
        self._started = False

    @contextmanager
    def add_user(self, name: str) -> Iterator[str]:
        """An unprivileged Linux user for the while, with a home; yields its real name, which is the cluster's own."""
        user = f"{self.instance.prefix}{name}"
        home = self.home / name
        with instances.machine_lock():
            argv = ["useradd", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/bash", user]
            self.run(*argv)
        try:
            home.mkdir()
            shutil.chown(home, user, pwd.getpwnam(user).pw_gid)
            yield user
        finally:
            self.run("scancel", f"--user={user}")
            self.wait_for(
                lambda: all(line.user != user for line in self.queue(states="running,completing")),
                f"the end of {user}'s jobs",
                timeout=self.options.kill_wait + 60,
            )
            with instances.machine_lock():
                self.run("userdel", "--force", user)
            shutil.rmtree(home)

    def in_node(
        self, node: str, *argv: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the node's network and under its host name, outside of any job."""
        return self.run(*self._running_network().enter(node), *argv, check=check, timeout=timeout)

    # Faults

    def partition_node(self, node: str) -> None:
        """Cut the node off the network; its processes go on."""
        self._running_network().set_cable(node, "down")

    def heal_node(self, node: str) -> None:
        """Put the cable back."""
        self._running_network().set_cable(node, "up")

    @contextmanager
    def slow_links(self) -> Iterator[SlowLinks]:
        """For the while each node's cable can be made slow, lossy, clogged or deaf."""
        links = self._running_network().put_slow_links(self.env)
        try:
            yield links
        finally:
            links.stop()
            self._running_network().put_good_links()

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """For the while slurmctld is away, as during an upgrade."""
        controller = self._daemons.pop("slurmctld")
        controller.terminate()
        controller.wait(timeout=30)
        try:
            yield
        finally:
            self._start_controller()

    def kill_node(self, node: str) -> None:
        """SIGKILL all that runs in the node. Its kernel still resets connections: for a power cut, partition first."""
        deadline = time.monotonic() + leftovers.GONE_WITHIN_S
        while pids := self.pids_on(node):
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of {node} survive SIGKILL: {pids}")
            for pid in pids:
                leftovers.kill(pid)
            time.sleep(0.01)
        if node in self._daemons:
            self._daemons.pop(node).wait(timeout=10)

    def start_node(self, node: str) -> None:
        """Start the node's slurmd again after `kill_node`, as a reboot would; does not wait until the node is idle.

        Slurm then requeues the jobs whose batch script ran there, if they are older than 20 s (BatchStartTimeout and
        MessageTimeout). Any other job it goes on believing in: it ends at its time limit, or when its srun does. A
        node that stays silent for SlurmdTimeout loses all its jobs.
        """
        self._start_slurmd(node, "-b")

    def _start_slurmd(self, node: str, *options: str) -> None:
        # Programs take a shared memory that they both see for a sign that they are on one machine.
        own_memory = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", OWN_MEMORY, "sh"]
        command = ["slurmd", "-D", "-N", node, *options]
        self._spawn(node, [*self._running_network().enter(node), *own_memory, *command])

    def pids_on(self, node: str) -> list[int]:
        """All processes in the node: slurmd, slurmstepds and what they started."""
        holder = self._running_network().holder(node)
        return [pid for pid in leftovers.processes(self.instance)[node] if pid != holder]

    def reset(self, timeout: float = 60) -> None:
        """End all jobs, mend all nodes and wait until they are idle."""
        for node in self.nodes:
            self.heal_node(node)
        ids = {line.id for line in self.queue("pending,running,suspended,completing,configuring")}
        if ids:
            self.run("scancel", *sorted(ids), check=False)
        for node, state in self.node_states().items():
            if state.endswith("*"):  # Slurm would see by itself that it is back, after half a minute
                self.kill_node(node)
            if node not in self._daemons:
                self.start_node(node)
        self._daemons_live()
        self.wait_for(self._quiet, "six idle nodes", timeout)

    def _quiet(self) -> bool:
        """Jobs that ignore SIGTERM are not waited for: what they run is killed."""
        if set(self.node_states().values()) == {"idle"}:
            return True
        for node in self.nodes:
            if queries.program(self._daemons[node].pid) != "slurmd":
                continue  # it starts: what runs there becomes slurmd
            for pid in self.pids_on(node):
                if queries.program(pid) not in ("slurmd", "slurmstepd"):
                    leftovers.kill(pid)
        return False

    def _running_network(self) -> Network:
        if self._network is None:
            raise RuntimeError("the cluster does not run")
        return self._network
