"""Whose address a request is counted for: X-Forwarded-For is believed of trusted proxies alone."""

import pytest

from schemas.networks import client_address, is_loopback, networks


@pytest.mark.parametrize(
    ("proxies", "peer", "headers", "client"),
    [
        ("", "10.0.0.1", [], "10.0.0.1"),
        ("", "10.0.0.1", ["1.1.1.1"], "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("10.0.0.0/8", "10.0.0.1", ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),  # 6.6.6.6 is the client's own invention
        ("10.0.0.0/8", "10.0.0.1", ["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
        ("10.0.0.0/8", "10.0.0.1", ["1.1.1.1", "10.0.0.2"], "1.1.1.1"),
        ("10.0.0.0/8", "10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("::1", "::1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.0/8", "unknown", ["1.1.1.1"], "unknown"),
    ],
)
def test_the_client_is_the_last_address_that_no_proxy_has(
    proxies: str, peer: str, headers: list[str], client: str
) -> None:
    assert client_address(peer, headers, networks(proxies)) == client


@pytest.mark.parametrize(("address", "is_one"), [("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), ("", False)])
def test_loopback(address: str, is_one: bool) -> None:
    assert is_loopback(address) is is_one
