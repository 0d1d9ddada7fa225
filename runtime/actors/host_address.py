"""The one address that a member binds and advertises."""

from __future__ import annotations

import ipaddress
import socket


def resolve_host(host: str) -> str:
    """The one address to bind: `host` itself, or for "auto" the address of this node's name.

    Raises ValueError for a wildcard: a member never listens on every interface.
    """
    if host == "auto":
        name = socket.gethostname()
        addresses = {
            str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        }
        routable = sorted(a for a in addresses if not ipaddress.ip_address(a).is_loopback)
        if not routable:
            raise ValueError(
                f"host auto: this node's name {name} resolves to {sorted(addresses)}; name an address"
            )
        return routable[0]
    address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    if ipaddress.ip_address(address).is_unspecified:
        raise ValueError(f"host {host!r} listens on every interface: name one address")
    return str(address)
