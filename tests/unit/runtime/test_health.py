"""Probes of services without a web server of their own."""

import socket
from contextlib import ExitStack

import httpx

from deploy.local.process import HOST, free_ports
from runtime.health import HealthServer


def test_probes_are_answered_while_connections_are_silent() -> None:
    (port,) = free_ports(1)
    with HealthServer(HOST, port, {}), ExitStack() as silent:
        for _ in range(8):
            client = silent.enter_context(socket.create_connection((HOST, port), timeout=5))
            client.sendall(b"GET /healthz HT")
        silent.enter_context(socket.create_connection((HOST, port), timeout=5))
        for path in ("/healthz", "/readyz", "/metrics"):
            assert httpx.get(f"http://{HOST}:{port}{path}", timeout=5, trust_env=False).status_code == 200
