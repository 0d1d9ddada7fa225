"""Finds the one address that a member binds and advertises."""

from __future__ import annotations

import ipaddress
import socket


def resolve_host(host: str) -> str:
    """Resolves an address or a host name to the one address to bind.

    Raises OSError if `host` is neither, and ValueError for a wildcard: a member never listens on every
    interface.
    """
    address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    if ipaddress.ip_address(address).is_unspecified:
        raise ValueError(f"host {host!r} listens on every interface: name one address")
    return str(address)
