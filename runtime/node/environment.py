"""Finds the network address, the interface and the GPUs that a node's processes use."""

from __future__ import annotations

import glob
import ipaddress
import os
import re
from dataclasses import dataclass

from verst.runtime.actors.host_address import resolve_host
from verst.runtime.node.interfaces import Interface, best_interface, interfaces, routed_address


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

    `host` is as in the plan: an address, an interface's name, or "auto" for the best one (`interfaces.py`). Raises
    ValueError if no interface fits.
    """
    address, interface = node_address(host)
    variables = {"VERST_HOST": address}
    if interface is not None:
        # Else torch.distributed looks up the address of the host's name, which may be any interface's.
        # NCCL takes a name for a prefix (bond0 is bond0.2093, too), unless it begins with "=".
        for name, value in (("GLOO_SOCKET_IFNAME", interface), ("NCCL_SOCKET_IFNAME", f"={interface}")):
            variables[name] = os.environ.get(name, value)
    return NodeEnvironment(variables)


def node_address(host: str) -> tuple[str, str | None]:
    """The address to bind and advertise, and its interface's name (None for the loopback interface)."""
    if _is_loopback(host):  # a run on one machine
        return host, None
    found = interfaces()
    if host in found:
        return found[host].address, host
    if host == "auto":
        best = best_interface(found, routed_address())
        if best is None:
            raise ValueError(
                f"no interface of this node has an address that other nodes can reach: {_listed(found)}"
            )
        return best.address, best.name
    try:
        address = resolve_host(host)
    except OSError as error:
        raise ValueError(
            f"{host!r} is neither an interface of this node nor an address ({error}); "
            f"it has: {_listed(found)}"
        ) from None
    name = next((i.name for i in found.values() if address in i.addresses and not i.loopback), None)
    return address, name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _listed(found: dict[str, Interface]) -> str:
    return ", ".join(f"{i.name} ({i.address})" for i in found.values()) or "none"


def _offered_gpus() -> list[str]:
    """The names of the GPUs that we may use. Slurm sets CUDA_VISIBLE_DEVICES in a job that requests GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    numbers = [re.search(r"\d+$", device) for device in glob.glob("/dev/nvidia[0-9]*")]
    return sorted((number[0] for number in numbers if number), key=int)
