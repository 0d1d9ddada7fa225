"""What the agent finds out about its node: address, interface, GPUs."""

from __future__ import annotations

import socket
from collections import namedtuple

import psutil
import pytest

from verst.runtime.node.environment import node_address, node_environment

Address = namedtuple("Address", "family address")
Stats = namedtuple("Stats", "isup speed")
NODE = {
    "lo": ([Address(socket.AF_INET, "127.0.0.1")], Stats(True, 0)),
    "eno1": (
        [Address(socket.AF_INET, "10.0.0.5"), Address(socket.AF_INET6, "fe80::1%eno1")],
        Stats(True, 1000),
    ),
    "ens3": ([Address(socket.AF_INET, "10.1.0.5")], Stats(True, 100_000)),
    "ib0": ([Address(socket.AF_INET, "10.2.0.5")], Stats(True, 0)),
    "hsn1": ([Address(socket.AF_INET, "10.3.0.5")], Stats(False, 200_000)),
    "docker0": ([Address(socket.AF_INET, "172.17.0.1")], Stats(True, 400_000)),
}


def node(monkeypatch: pytest.MonkeyPatch, *names: str, **more: tuple[list[Address], Stats]) -> None:
    interfaces = {name: NODE[name] for name in names} | more
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {n: a for n, (a, _) in interfaces.items()})
    monkeypatch.setattr("verst.runtime.node.environment.routed_address", lambda: None)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {n: s for n, (_, s) in interfaces.items()})


def test_auto_takes_the_interconnect_before_the_fastest_before_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node(monkeypatch, *NODE)
    assert node_address("auto") == ("10.2.0.5", "ib0")  # hsn1 is down, docker0 leads nowhere
    node(monkeypatch, "lo", "eno1", "ens3", "docker0")
    assert node_address("auto") == ("10.1.0.5", "ens3")


def test_an_interface_or_an_address_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch, *NODE)
    assert node_address("eno1") == ("10.0.0.5", "eno1")
    assert node_address("10.1.0.5") == ("10.1.0.5", "ens3")
    assert node_address("127.0.0.1") == ("127.0.0.1", None)


def test_a_node_with_ipv6_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    six = ([Address(socket.AF_INET6, "fe80::1%six0"), Address(socket.AF_INET6, "fd00::5")], Stats(True, 1000))
    node(monkeypatch, "lo", six0=six)
    assert node_address("auto") == ("fd00::5", "six0")


def test_what_is_not_there_is_named_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch, "lo", "eno1")
    with pytest.raises(ValueError, match=r"'ib7' is neither an interface of this node .*eno1 \(10.0.0.5\)"):
        node_address("ib7")
    node(monkeypatch, "lo", "docker0")
    with pytest.raises(
        ValueError, match="no interface of this node has an address that other nodes can reach"
    ):
        node_address("auto")


def test_torch_is_told_the_interface_unless_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    node(monkeypatch, *NODE)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=ib0,ib1")
    assert node_environment("auto").variables == {
        "VERST_HOST": "10.2.0.5",
        "GLOO_SOCKET_IFNAME": "ib0",
        "NCCL_SOCKET_IFNAME": "=ib0,ib1",
    }
    assert node_environment("127.0.0.1").variables == {"VERST_HOST": "127.0.0.1"}


def test_places_among_the_gpus_that_slurm_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    here = node_environment("127.0.0.1")
    assert here.devices("trainer-1", [1]) == "5"
    with pytest.raises(ValueError, match="trainer-2 is planned on GPU 2 of its node, which offers 2"):
        here.devices("trainer-2", [2])
