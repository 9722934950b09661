"""Two servers behind one address: the real engine twice, and a balancer that gives every connection to the other one."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.process import HOST
from schemas.settings import Settings
from warehouse.migrate import migrate
from warehouse.one_server import SeveralServers


@contextmanager
def balancer(ports: list[int]) -> Generator[int]:
    """A port; connections to it reach one of the ports after the other."""
    with socket.create_server((HOST, 0)) as listening:
        threading.Thread(target=_balance, args=(listening, itertools.cycle(ports)), daemon=True).start()
        yield listening.getsockname()[1]


def _balance(listening: socket.socket, ports: Iterator[int]) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            near, _ = listening.accept()
            far = socket.create_connection((HOST, next(ports)))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with source, suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_servers_that_don_t_share_the_database_are_refused(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    first, second = clickhouse_factory(), clickhouse_factory()
    second.data_dir.mkdir(parents=True)
    (second.data_dir / "password").write_text(first.password)
    first.start()
    second.start()
    with balancer([first.port, second.port]) as port:
        both = Settings(clickhouse_dsn=first.dsn("usage").replace(f":{first.port}/", f":{port}/"))
        for _ in range(2):  # the second time both have the database, each its own
            with pytest.raises(SeveralServers, match="several servers answer at this address"):
                migrate(both)
            migrate(Settings(clickhouse_dsn=second.dsn("usage")))
    with balancer([first.port, first.port]) as port:
        one = Settings(clickhouse_dsn=first.dsn("usage").replace(f":{first.port}/", f":{port}/"))
        assert migrate(one)
