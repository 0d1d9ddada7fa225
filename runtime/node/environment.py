"""Finds the network address, the interface and the GPUs that a node's processes use."""

from __future__ import annotations

import glob
import ipaddress
import os
import re
from dataclasses import dataclass

from verst.runtime.actors.host_address import resolve_host

# Bridges and tunnels of container engines, virtual machines and VPNs, which do not lead to another node.
_INNER = re.compile(r"docker|podman|cni|virbr|br-|vnet|lxc|lxd|tun|tap|wg|tailscale|nerdctl|cali|flannel")
_FABRIC = re.compile(r"ib|hsn|mlx|opa")  # names of interconnects: InfiniBand, Slingshot, Omni-Path


@dataclass(frozen=True)
class NodeEnvironment:
    """The environment variables that the agent adds for all processes of its node, and the node's GPUs."""

    variables: dict[str, str]

    def devices(self, process: str, places: list[int]) -> str:
        """The value of CUDA_VISIBLE_DEVICES for the GPUs at `places` among those that this node offers us.

        Raises ValueError if the node offers too few.
        """
        offered = _offered_gpus()
        if places and max(places) >= len(offered):
            raise ValueError(
                f"{process} is planned on GPU {max(places)} of its node, which offers "
                f"{len(offered)} ({','.join(offered) or 'none'}): request more GPUs, e.g. gpus-per-node"
            )
        return ",".join(offered[place] for place in places)


def node_environment(host: str) -> NodeEnvironment:
    """The environment of this node's processes.

    `host` is as in the plan: an address, an interface's name, or "auto" for the fastest interface. Raises
    ValueError if no interface fits.
    """
    address, interface = node_address(host)
    variables = {"VERST_HOST": address}
    if interface is not None:
        # Else torch.distributed looks up the address of the host's name, which may be any interface's.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            variables[name] = os.environ.get(name, interface)
    return NodeEnvironment(variables)


def node_address(host: str) -> tuple[str, str | None]:
    """The address to bind and advertise, and its interface's name (None for the loopback interface)."""
    if _is_loopback(host):  # a run on one machine
        return host, None
    interfaces = _interfaces()
    if host in interfaces:
        return interfaces[host].address, host
    if host == "auto":
        usable = [i for i in interfaces.values() if not i.loopback and not _INNER.match(i.name)]
        if not usable:
            raise ValueError(
                f"no interface of this node has an address that other nodes can reach: {_listed(interfaces)}"
            )
        best = max(usable, key=lambda i: (_FABRIC.match(i.name) is not None, i.megabits, i.name))
        return best.address, best.name
    try:
        address = resolve_host(host)
    except OSError as error:
        raise ValueError(
            f"{host!r} is neither an interface of this node nor an address ({error}); "
            f"it has: {_listed(interfaces)}"
        ) from None
    name = next((i.name for i in interfaces.values() if address in i.addresses and not i.loopback), None)
    return address, name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


@dataclass(frozen=True)
class _Interface:
    name: str
    addresses: tuple[str, ...]  # IPv4 first, without link-local ones
    megabits: int
    loopback: bool

    @property
    def address(self) -> str:
        return self.addresses[0]


def _interfaces() -> dict[str, _Interface]:
    """This node's interfaces that are up and have an address, by name."""
    import psutil

    stats = psutil.net_if_stats()
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        addresses = []
        for entry in entries:
            try:
                address = ipaddress.ip_address(entry.address.partition("%")[0])
            except ValueError:  # a hardware address
                continue
            if not address.is_link_local:
                addresses.append(address)
        addresses.sort(key=lambda a: a.version)
        if addresses and name in stats and stats[name].isup:
            texts = tuple(map(str, addresses))
            found[name] = _Interface(name, texts, stats[name].speed, addresses[0].is_loopback)
    return found


def _listed(interfaces: dict[str, _Interface]) -> str:
    return ", ".join(f"{i.name} ({i.address})" for i in interfaces.values()) or "none"


def _offered_gpus() -> list[str]:
    """The names of the GPUs that we may use. Slurm sets CUDA_VISIBLE_DEVICES in a job that requests GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    numbers = [re.search(r"\d+$", device) for device in glob.glob("/dev/nvidia[0-9]*")]
    return sorted((number[0] for number in numbers if number), key=int)
