"""Removes every trace of a cluster, from whatever state it is in: at its end, or when its owner has died.

Nothing here relies on what the owner knew. A process belongs to a node if the node's interface is in its network
namespace, and to the login node if SLURM_CONF in its environment is the cluster's; interfaces, users and lines in
/etc/hosts carry the cluster's name.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.cluster.instances import Instance, forget, machine_lock, recorded, remove_from_hosts

GONE_WITHIN_S = 20.0


def remove_dead_instances() -> None:
    """Clean up after every cluster whose owner is gone; those of the living are not touched."""
    with machine_lock():
        for instance in recorded():
            if not instance.owner_lives():
                _remove(instance)


def remove(instance: Instance) -> None:
    """Processes, namespaces, interfaces, users, lines in /etc/hosts, files, and at last the record."""
    with machine_lock():
        if instance in recorded():
            _remove(instance)


def _remove(instance: Instance) -> None:
    _kill_all(instance)
    _remove_interfaces(instance)
    remove_from_hosts(instance)
    for entry in pwd.getpwall():
        if re.fullmatch(rf"{instance.prefix}[a-z_-]+", entry.pw_name):
            subprocess.run(["userdel", entry.pw_name], check=True, capture_output=True, timeout=30)
    if os.path.isdir(instance.folder):
        shutil.rmtree(instance.folder)
    forget(instance)


def processes(instance: Instance) -> dict[str, list[int]]:
    """The ids of the living processes of each node, and of "login". Never those that call this."""
    found: dict[str, list[int]] = {place: [] for place in (*instance.nodes, "login")}
    place_of: dict[str, str | None] = {os.readlink("/proc/self/ns/net"): "login"}
    spared = _ancestors()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in spared:
            continue
        try:
            namespace = os.readlink(f"/proc/{entry}/ns/net")
            if namespace not in place_of:
                place_of[namespace] = _node_of(entry, instance)
            place = place_of[namespace]
            if place == "login" and not _speaks_to(entry, instance):
                continue
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile, or is a zombie
        if place is not None:
            found[place].append(int(entry))
    return found


def _node_of(pid: str, instance: Instance) -> str | None:
    """The node in whose network this process is, which is where the interface of that name is."""
    devices = {line.split(":")[0].strip() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()}
    return next((node for node in instance.nodes if node in devices), None)


def _speaks_to(pid: str, instance: Instance) -> bool:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return f"SLURM_CONF={instance.slurm_conf}".encode() in environment


def _ancestors() -> set[int]:
    """This process, its parent and so on up."""
    pid, found = os.getpid(), set[int]()
    while pid > 0:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return found


def _kill_all(instance: Instance) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := [pid for pids in processes(instance).values() for pid in pids]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of {instance.prefix} survive SIGKILL: {left}")
        for pid in left:
            kill(pid)
        time.sleep(0.02)


def kill(pid: int) -> None:
    """SIGKILL, to a process that may have ended meanwhile."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def interfaces(instance: Instance) -> list[str]:
    """Its bridge and the host's ends of its cables."""
    pattern = rf"{instance.prefix}(bridge|veth\d+)"
    return sorted(name for name in os.listdir("/sys/class/net") if re.fullmatch(pattern, name))


def _remove_interfaces(instance: Instance) -> None:
    """The kernel removes a dead namespace's cable by and by, so one may be gone before we ask."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := interfaces(instance):
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot remove the interfaces {left}")
        for name in left:
            subprocess.run(["ip", "link", "delete", name], capture_output=True, timeout=30)
        time.sleep(0.02)
