"""A webhook's address → where it may be sent to: never into our own network, unless the operator says so."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

_EMBEDDING_V4 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"), IPv6Network("2002::/16"))
"""Addresses that a router may turn into any IPv4 address."""
_PORTS = {"http": 80, "https": 443}


class RefusedTarget(ValueError):
    """An address that nothing is sent to."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is made with. url: names the checked address itself, so that no later look-up changes it."""

    url: str
    host_header: str
    server_name: str


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it lies outside of every private, loopback, link-local, shared and reserved range."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _EMBEDDING_V4):
            return False
    return address.is_global and not address.is_multicast


def check_address(url: str, *, private: bool) -> None:
    """What can be told without a look-up of names. private: all is allowed. Raises RefusedTarget."""
    if private:
        return
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise RefusedTarget("the address must begin with https://")
    host = (parts.hostname or "").rstrip(".").lower()
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        raise RefusedTarget(f"{host} is a private address: use a public https URL")
    try:
        literal = ip_address(host)
    except ValueError:
        return
    if not is_public(literal):
        raise RefusedTarget(f"{host} is a private address")


async def resolve(url: str, *, private: bool) -> Target:
    """Look the name up and take its first address; every one of them must be public. Raises RefusedTarget, OSError."""
    check_address(url, private=private)
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not private:
        _require_public(host, addresses)
    return _target(parts, addresses[0], port)


def _require_public(host: str, addresses: Iterable[str]) -> None:
    for address in addresses:
        if not is_public(ip_address(address.partition("%")[0])):
            raise RefusedTarget(f"{host} leads to {address}, a private address")


def _target(parts: SplitResult, address: str, port: int) -> Target:
    at = f"[{address}]" if ":" in address else address
    url = parts._replace(netloc=f"{at}:{port}", fragment="").geturl()
    return Target(url, parts.netloc.rpartition("@")[2], parts.hostname or "")
