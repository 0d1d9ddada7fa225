"""The nodes' network: a network and UTS namespace for each node, joined by a bridge that the host is on too.

A process that sleeps holds the namespaces open, so a node keeps them when its slurmd is killed. They are entered
with nsenter: `ip netns` leaves mounts behind, and gives the command a /sys of its own.
"""

from __future__ import annotations

import subprocess

from tests.cluster.instances import Instance
from tests.cluster.slow_links import SlowLinks

HOLD = 'ip link set lo up && hostname "$0" && echo ready && exec sleep infinity'


class Network:
    """Made at once; ends with `leftovers.remove`, which also ends the holders."""

    def __init__(self, instance: Instance, env: dict[str, str]) -> None:
        self._instance = instance
        self._holders: dict[str, subprocess.Popen[str]] = {}
        for node in instance.nodes:
            self._holders[node] = subprocess.Popen(
                ["unshare", "--net", "--uts", "--", "sh", "-c", HOLD, node],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        for node, holder in self._holders.items():
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                raise RuntimeError(f"cannot make the namespaces of {node}; see the message of unshare above")
            holder.stdout.close()
        self._join()

    def _join(self) -> None:
        mine = self._instance
        bridge = mine.bridge
        lines = [
            f"link add {bridge} type bridge",
            f"address add {mine.login_address}/24 dev {bridge}",
            f"link set {bridge} up",
        ]
        for node, holder in self._holders.items():
            lines.append(f"link add {mine.veth(node)} type veth peer name {node} netns {holder.pid}")
            lines.append(f"link set {mine.veth(node)} master {bridge} up")
        _ip_batch([], lines)
        for node in self._holders:
            lines = [f"address add {mine.address(node)}/24 dev {node}", f"link set {node} up"]
            _ip_batch(self.enter(node), lines)

    def enter(self, node: str) -> list[str]:
        """What to put before a command so that it runs in the node; it runs in the same process."""
        return ["nsenter", f"--target={self._holders[node].pid}", "--net", "--uts", "--"]

    def holder(self, node: str) -> int:
        return self._holders[node].pid

    def set_cable(self, node: str, state: str) -> None:
        """Pull the node's cable ("down") or put it back ("up")."""
        _ip_batch([], [f"link set {self._instance.veth(node)} {state}"])

    def put_slow_links(self, env: dict[str, str]) -> SlowLinks:
        """Takes the cables out of the bridge and lets a process carry their frames, well or badly."""
        pairs, lines = {}, []
        for node in self._holders:
            cable, (port, in_bridge) = self._instance.veth(node), self._instance.between(node)
            pairs[node] = (cable, port)
            lines += [
                f"link set {cable} nomaster",
                # Or the host itself, which has the bridge's address, would answer on the cable.
                f"link set {cable} arp off",
                f"link add {port} type veth peer name {in_bridge}",
                f"link set {port} arp off",
                f"link set {port} up",
                f"link set {in_bridge} master {self._instance.bridge} up",
            ]
        _ip_batch([], lines)
        return SlowLinks(pairs, env)

    def put_good_links(self) -> None:
        """Puts the cables back into the bridge, once the process has ended."""
        lines = []
        for node in self._holders:
            cable, (port, _) = self._instance.veth(node), self._instance.between(node)
            lines += [f"link delete {port}", f"link set {cable} arp on"]
            lines += [f"link set {cable} master {self._instance.bridge}"]
        _ip_batch([], lines)

    def reap(self) -> None:
        """After `leftovers.remove`: take the holders' exit codes, so that no zombie stays."""
        for holder in self._holders.values():
            holder.wait(timeout=10)


def _ip_batch(prefix: list[str], lines: list[str]) -> None:
    script = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        [*prefix, "ip", "-batch", "-"], input=script, capture_output=True, text=True, timeout=30
    )
    if done.returncode:
        raise RuntimeError(f"ip -batch failed: {done.stderr.strip()}\n{script}")
