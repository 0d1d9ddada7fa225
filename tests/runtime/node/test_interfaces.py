"""Which interface the run's own traffic takes, with the kernel's own interfaces where we may make some."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from verst.runtime.node import interfaces as node_interfaces
from verst.runtime.node.environment import node_environment
from verst.runtime.node.interfaces import Interface, best_interface, routed_address

PICK = "from verst.runtime.node.environment import node_address; print(*node_address('auto'))"
MAKE = """
ip link set lo up
ip link add $1 type veth peer name p0; ip link add $2 type veth peer name p1
for i in $1 p0 $2 p1; do ip link set $i up; done
ip addr add 10.1.0.5/16 dev $1; ip addr add 192.168.56.1/24 dev $2
[ -z "$3" ] || ip route add default via 10.1.0.1
exec "$0" -P -c "$4"
"""


def picked(first: str, second: str, default_route: bool = True, **environ: str) -> str:
    """The interface that a process takes in a network namespace with two of equal speed; `first` has 10.1.0.5/16."""
    inside = [sys.executable, first, second, "yes" if default_route else "", PICK]  # from $0 on
    argv = ["unshare", "-n", "sh", "-c", MAKE, *inside]
    made = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})
    if made.returncode and "unshare" in made.stderr:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    return made.stdout.split()[1]


@pytest.mark.parametrize(
    ("main", "other"),
    [
        ("eth0", "vboxnet0"),
        ("eth0", "kube-ipvs0"),
        ("eth0", "weave"),
        ("enp1s0", "ppp0"),
        ("eth0", "usb0"),
        ("bond0", "bond0.2093"),
        ("eth0", "ibmgmt0"),
        ("eno1", "eno2"),
        ("eno2", "eno1"),
        ("eth0", "zzz0"),
    ],
)
def test_of_equally_fast_ones_the_default_routes_wins(main: str, other: str) -> None:
    assert picked(main, other) == main


def test_without_a_default_route_the_way_to_the_jobs_first_node_counts() -> None:
    assert picked("eth0", "eth1", default_route=False, SLURM_LAUNCH_NODE_IPADDR="10.1.0.9") == "eth0"
    assert picked("eth0", "eth1", default_route=False, SLURM_LAUNCH_NODE_IPADDR="192.168.56.9") == "eth1"
    assert picked("eth0", "eth1", SLURM_LAUNCH_NODE_IPADDR="192.168.56.1") == "eth1"  # the first node itself


def of(**speeds: int) -> dict[str, Interface]:
    """Interfaces by name with their speeds; the n-th has the address 10.0.n.1."""
    names = [name.replace("_", ".") for name in speeds]
    return {
        name: Interface(name, (f"10.0.{number}.1",), speed, loopback=False)
        for number, (name, speed) in enumerate(zip(names, speeds.values(), strict=True))
    }


@pytest.mark.parametrize(
    ("speeds", "routed", "best"),
    [
        ({"eth0": 1000, "ens5": 100_000}, "10.0.0.1", "ens5"),  # a faster data network needs no default route
        ({"eth0": 0, "ens5": 10_000}, "10.0.0.1", "eth0"),  # of unknown speed: the route decides
        ({"eth0": 1000, "hsn0": 0, "hsn1": 0}, "10.0.0.1", "hsn0"),
        ({"eth0": 1000, "ibp65s0": 0}, "10.0.0.1", "ibp65s0"),
        ({"eno10": 1000, "eno9": 1000}, None, "eno9"),
        ({"eth0": 1000, "wg0": 0}, "10.0.1.1", "eth0"),  # a VPN may have the default route
    ],
)
def test_what_counts_in_which_order(speeds: dict[str, int], routed: str | None, best: str) -> None:
    chosen = best_interface(of(**speeds), routed)
    assert chosen is not None
    assert chosen.name == best


def test_what_is_virtual_comes_after_hardware_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_interfaces, "_is_hardware", lambda name: name == "ens3")
    chosen = best_interface(of(ens3=0, abc0=10_000), None)
    assert chosen is not None
    assert chosen.name == "ens3"


def test_nccl_takes_the_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("verst.runtime.node.environment.interfaces", lambda: of(bond0=1000))
    variables = node_environment("auto").variables
    assert (variables["NCCL_SOCKET_IFNAME"], variables["GLOO_SOCKET_IFNAME"]) == ("=bond0", "bond0")


def test_a_name_that_is_no_address_is_no_route() -> None:
    assert routed_address({"SLURM_LAUNCH_NODE_IPADDR": "no address"}) == routed_address({})
