"""Ports for servers that are started a moment later."""

import socket
import subprocess
import sys

from deploy.local.process import HOST, free_ports


def test_ports_differ_and_can_be_bound() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as server:
            server.bind((HOST, port))


def test_a_port_that_something_is_bound_to_is_passed_over() -> None:
    (port,) = free_ports(1)
    with socket.socket() as server:
        server.bind((HOST, port + 1))
        assert port + 1 not in free_ports(5)


def test_a_port_that_one_process_was_given_no_other_gets_while_it_lives() -> None:
    (port,) = free_ports(1)
    other = (
        f"from deploy.local import process; process._untried_ports = {[port, port + 1]}; print(process.free_ports(1))"
    )
    answer = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"[{port + 1}]"


def test_no_port_is_one_that_the_system_gives_to_outgoing_connections() -> None:
    with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname()) as connection:
        assert connection.getsockname()[1] > max(free_ports(50))
