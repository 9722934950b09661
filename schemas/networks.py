"""addresses of proxies, X-Forwarded-For → the address of the client. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

Networks = tuple[IPv4Network | IPv6Network, ...]


def networks(text: str) -> Networks:
    """ "10.0.0.0/8, ::1" → networks. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def is_within(address: str, known: Networks) -> bool:
    """Whether it is an address of one of the networks."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)  # ::ffff:10.0.0.1, as a socket for both families says
    return any((mapped or parsed) in network for network in known)


def is_loopback(address: str) -> bool:
    return is_within(address, networks("127.0.0.0/8, ::1"))


def client_address(peer: str, forwarded_for: Sequence[str], proxies: Networks) -> str:
    """The address of who asks: the peer's, or behind trusted proxies the last one that is none of them.

    forwarded_for: the X-Forwarded-For headers, in order. Each proxy appends the address of its own peer, so what stands
    left of the first untrusted one was written by who asks.
    """
    address = peer
    hops = [hop.strip() for header in forwarded_for for hop in header.split(",")]
    for hop in reversed(hops):
        if not is_within(address, proxies):
            return address
        try:
            address = str(ip_address(hop))
        except ValueError:
            return address
    return address
