"""The proxy between gateway and broker passes bytes on, and leaves nothing open behind it."""

from __future__ import annotations

import gc
import socket
import threading

from deploy.local.process import HOST, free_ports
from tests.chaos.proxy import Proxy


def test_a_proxy_that_ends_leaves_nothing_open() -> None:
    """A leftover loop or socket is a ResourceWarning, which fails the test that runs when it is collected."""
    (port,) = free_ports(1)
    with (
        socket.create_server((HOST, 0)) as target,
        Proxy(port, target.getsockname()[1]),
        socket.create_connection((HOST, port), timeout=10) as client,
    ):
        server, _ = target.accept()
        with server:
            client.sendall(b"request")
            assert server.recv(100) == b"request"
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
    assert not [thread for thread in threading.enumerate() if thread.name == "proxy"]
    gc.collect()
