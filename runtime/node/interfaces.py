"""Finds this node's network interfaces, and the one for the run's own traffic."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Bridges and tunnels of container engines, virtual machines and VPNs, and links to the node's own service
# processor. None leads to another node.
_INNER = re.compile(
    r"docker|podman|cni|virbr|br-|vnet|vboxnet|vmnet|lxc|lxd|veth|tun|tap|macvtap|wg|tailscale|zt|ppp|nerdctl|cali"
    r"|flannel|kube|weave|nodelocaldns|azv|ovs|vxlan|genev|gre|sit|ip6tnl|ipsec|dummy|ifb|usb|idrac|bmc"
)
# Names of interconnects: InfiniBand (ib0, ibp65s0), Slingshot, Omni-Path. Not ibmgmt0.
_FABRIC = re.compile(r"(ib[psPv]?|hsn|opa)\d|mlx")
_INFINIBAND = "32"  # the kernel's type of such an interface
# Addresses of documentation, which only a default route leads to. Nothing is sent there.
_ELSEWHERE = ("198.51.100.1", "2001:db8::1")
_SYSTEM = Path("/sys/class/net")


@dataclass(frozen=True)
class Interface:
    """An interface that is up."""

    name: str
    addresses: tuple[str, ...]  # IPv4 first, without link-local ones
    megabits: int  # 0: unknown
    loopback: bool

    @property
    def address(self) -> str:
        """The address to bind and advertise."""
        return self.addresses[0]


def interfaces() -> dict[str, Interface]:
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
            found[name] = Interface(name, texts, stats[name].speed, addresses[0].is_loopback)
    return found


def best_interface(found: Mapping[str, Interface], routed: str | None) -> Interface | None:
    """The interface for the run's traffic, or None if none leads to other nodes.

    An interconnect comes first, then hardware (or what has the route to other nodes) before what is virtual, then
    the fastest. Among equally fast ones, and if the speed of the routed one is unknown, the routed one wins.

    Args:
        found: the node's interfaces.
        routed: the address of the interface that leads to other nodes (`routed_address`), if there is one.
    """
    usable = [i for i in found.values() if not i.loopback and not _INNER.match(i.name)]
    with_route = next((i for i in usable if routed in i.addresses), None)
    comparable = with_route is None or with_route.megabits > 0

    def rank(interface: Interface) -> tuple[bool, bool, int, bool]:
        has_route = interface is with_route
        real = has_route or _is_hardware(interface.name) is not False
        return _is_fabric(interface.name), real, interface.megabits if comparable else 0, has_route

    # max takes the first of equals: eno1 before eno2.
    return max(sorted(usable, key=lambda i: _natural(i.name)), key=rank, default=None)


def routed_address(environ: Mapping[str, str] = os.environ) -> str | None:
    """This node's address on the way to the job's first node, by Slurm's own account, or else on the default route."""
    for target in (environ.get("SLURM_LAUNCH_NODE_IPADDR", ""), *_ELSEWHERE):
        try:
            family = socket.AF_INET6 if ":" in target else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))  # sends nothing
                address = probe.getsockname()[0]
        except (OSError, UnicodeError):
            continue
        if target and not ipaddress.ip_address(address).is_loopback:
            return str(address)
    return None


def _is_fabric(name: str) -> bool:
    return _FABRIC.match(name) is not None or _of_kernel(name, "type") == _INFINIBAND


def _is_hardware(name: str) -> bool | None:
    """Whether it is a network card, or a bond, VLAN or bridge of one. None if the kernel does not show it here."""
    if _of_kernel(name, "ifindex") is None:
        return None
    if (_SYSTEM / name / "device").exists():
        return True
    lower = [path.name.removeprefix("lower_") for path in (_SYSTEM / name).glob("lower_*")]
    return any(_is_hardware(part) for part in lower)


def _of_kernel(name: str, entry: str) -> str | None:
    """What the kernel says of an interface; None if it shows those of another network namespace."""
    try:
        index = (_SYSTEM / name / "ifindex").read_text().strip()
        if int(index) != socket.if_nametoindex(name):
            return None
        return (_SYSTEM / name / entry).read_text().strip()
    except (OSError, ValueError):
        return None


def _natural(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
