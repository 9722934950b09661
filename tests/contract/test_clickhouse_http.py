"""The local ClickHouse: its own server out of the wheel, with one user, who reaches tables and nothing else."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator

import clickhouse_connect
import httpx
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.process import HOST, StartFailed, free_ports
from tests.waiting import until

ACCESS_DENIED = "497"
NO_DIRECTORY = "1001"
"""The process has no working directory: see clickhouse_server.py."""
NOT_LET_IN = {"516", "700"}
"""AUTHENTICATION_FAILED, and USER_SESSION_LIMIT_EXCEEDED: the one session that `default` may have is taken."""


@pytest.fixture
def http(clickhouse: ClickHouseLocal) -> Iterator[httpx.Client]:
    """Plain HTTP, without a user."""
    with httpx.Client(base_url=clickhouse.url, timeout=60, trust_env=False) as client:
        yield client


def client_of(engine: ClickHouseLocal) -> Client:
    return clickhouse_connect.get_client(dsn=engine.dsn(), autogenerate_session_id=False)


def test_it_answers_the_services_user(clickhouse: ClickHouseLocal, http: httpx.Client) -> None:
    assert http.get("/ping").text == "Ok.\n"
    assert http.post("/", content="SELECT 1", auth=("usage", clickhouse.password)).text == "1\n"
    assert stat.S_IMODE((clickhouse.data_dir / "password").stat().st_mode) == 0o600
    for name in ("users.xml", "config.xml"):
        assert stat.S_IMODE((clickhouse.data_dir / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("user", [("", ""), ("default", ""), ("usage", ""), ("usage", "guessed"), ("analyst", "")])
def test_nobody_else_is_answered(http: httpx.Client, user: tuple[str, str]) -> None:
    answer = http.post("/", content="SELECT 1", auth=user)
    assert answer.headers["x-clickhouse-exception-code"] in NOT_LET_IN
    assert answer.status_code >= 400


@pytest.mark.parametrize("headers", [
    {"Origin": "https://example.com", "Content-Type": "text/plain"},       # a page's POST that asks for no leave
    {"Origin": "null", "Content-Type": "application/x-www-form-urlencoded"},
    {"Host": "example.com"},                                               # its own name, moved to this machine
])  # fmt: skip
def test_a_web_page_gets_nothing(http: httpx.Client, headers: dict[str, str]) -> None:
    """It does not know the password, and a browser keeps none for it."""
    for method, params in (
        ("POST", {}),
        ("GET", {"query": "SELECT 1"}),
        ("GET", {"query": "SELECT 1", "user": "default"}),
    ):
        answer = http.request(method, "/", params=params, content="SELECT 1", headers=headers)
        assert answer.headers["x-clickhouse-exception-code"] in NOT_LET_IN
        assert answer.status_code >= 400
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("statement", [
    "SELECT * FROM file('/etc/passwd', LineAsString)",
    "SELECT * FROM default.`/etc/passwd`",
    "INSERT INTO FUNCTION file('out.csv', CSV, 'a String') SELECT 'x'",
    "CREATE TABLE f (a String) ENGINE = File(CSV)",
    "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
    "CREATE TABLE u (a String) ENGINE = URL('http://127.0.0.1:1/', CSV)",
    "SELECT * FROM s3('http://127.0.0.1:1/bucket/o', LineAsString)",
    "SELECT * FROM remote('127.0.0.1:1', system.one)",
    "SELECT * FROM executable('x.sh', LineAsString, 'a String')",
    "CREATE USER other NOT IDENTIFIED",
    "CREATE NAMED COLLECTION c AS a = 1",
    "BACKUP DATABASE system TO File('copy')",
    "SYSTEM SHUTDOWN",
])  # fmt: skip
def test_no_file_no_address_no_other_user(
    clickhouse: ClickHouseLocal, database: str, http: httpx.Client, statement: str
) -> None:
    params = {"database": database}
    answer = http.post("/", content=statement, params=params, auth=("usage", clickhouse.password))
    assert answer.headers["x-clickhouse-exception-code"] in {ACCESS_DENIED, NO_DIRECTORY}, answer.text


@pytest.mark.parametrize("path", ["password", "/etc/passwd"])
def test_the_function_file_reads_nothing(clickhouse: ClickHouseLocal, http: httpx.Client, path: str) -> None:
    """This engine asks for no right; see clickhouse_server.py."""
    for call in (
        f"file('{path}')",
        f"file('{clickhouse.data_dir}/{path}', 'none')",
        f"file(materialize('{path}'), NULL)",
    ):
        answer = http.post("/", content=f"SELECT {call}", auth=("usage", clickhouse.password))
        assert answer.status_code >= 400, answer.text[:40]


def test_the_native_protocol_wants_the_password_too(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    engine = clickhouse_factory()
    engine.native_port = free_ports(1)[0]
    engine.start()
    greeting, exception = 0, 2

    def greet(password: str) -> int:
        """The kind of packet that answers a client's first one."""
        texts = [text.encode() for text in ("default", "usage", password)]
        hello = b"\x00\x04test\x18\x08" + b"\xd2\xa9\x03" + b"".join(bytes([len(text)]) + text for text in texts)
        with socket.create_connection((HOST, engine.native_port or 0), timeout=10) as connection:
            connection.sendall(hello)
            return connection.recv(1)[0]

    assert greet(engine.password) == greeting
    assert greet("guessed") == exception
    assert engine.stop() == 0


def test_a_second_process_on_the_same_directory_is_refused(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    first = clickhouse_factory()
    first.start()
    second = ClickHouseLocal(first.data_dir, free_ports(1)[0], first.log_path.with_suffix(".second"))
    with pytest.raises(StartFailed, match="ended with code 1"):
        second.start()
    with client_of(first) as client:
        assert client.query("SELECT 1").result_rows == [(1,)]


def test_a_port_that_is_taken_is_named(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    engine = clickhouse_factory()
    with socket.socket() as taken:
        taken.bind((HOST, engine.port))  # not listening: nothing answers there, as in a race for the port
        with pytest.raises(StartFailed, match=rf"{engine.port}"):
            engine.start()


WRITTEN_BEFORE = """
import sys
from chdb.state.sqlitelike import Connection
connection = Connection(sys.argv[1])
connection.query("CREATE DATABASE usage")
connection.query("CREATE TABLE usage.t (a Int64) ENGINE = MergeTree ORDER BY a")
connection.query("CREATE VIEW usage.v AS SELECT sum(a) AS total FROM usage.t")
connection.query("INSERT INTO usage.t SELECT number FROM numbers(1000)")
connection.close()
"""


def test_a_directory_of_the_embedded_engine_opens_unchanged(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    engine = clickhouse_factory()
    engine.data_dir.mkdir(parents=True)
    subprocess.run([sys.executable, "-c", WRITTEN_BEFORE, str(engine.data_dir)], check=True)
    # A process that was killed while it took the directory over is finished by the next.
    (engine.data_dir / "data.moving").mkdir()
    (engine.data_dir / "store").rename(engine.data_dir / "data.moving" / "store")
    for _ in range(2):
        engine.start()
        with client_of(engine) as client:
            assert client.query("SELECT total FROM usage.v").result_rows == [(499_500,)]
            client.command("INSERT INTO usage.t VALUES (0)")
        assert engine.stop() == 0
    assert {entry.name for entry in engine.data_dir.iterdir()} >= {"data", "password", "config.xml", "users.xml"}
    assert not (engine.data_dir / "metadata").exists()


def test_what_was_acknowledged_survives_a_kill(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    engine = clickhouse_factory()
    engine.start()
    with client_of(engine) as client:
        client.command("CREATE DATABASE d")
        client.command("CREATE TABLE d.t (a Int64) ENGINE = MergeTree ORDER BY a SETTINGS fsync_after_insert = 1")
        client.command("INSERT INTO d.t SELECT number FROM numbers(1000)")
        engine.kill()
        engine.start()
        assert client.query("SELECT count() FROM d.t").result_rows == [(1000,)]
        engine.pause()
        engine.resume()
        assert client.query("SELECT count() FROM d.t").result_rows == [(1000,)]
    assert engine.stop() == 0


def test_rude_clients_do_not_end_it(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    """Up to 26.7 an error in a client's connection ended the process (ClickHouse 115666)."""
    engine = clickhouse_factory()
    engine.start()
    noise = random.Random(1)
    for number in range(300):
        with socket.create_connection((HOST, engine.port), timeout=10) as connection:
            if number % 3 == 0:
                connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nSELECT")
            elif number % 3 == 1:
                connection.sendall(noise.randbytes(500))
            else:  # a reset in the middle of an answer
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    auth = ("usage", engine.password)
    with httpx.Client(base_url=engine.url, timeout=60, trust_env=False, auth=auth) as http:
        for content in (b"\x00\xff", os.urandom(5000), b"INSERT INTO", b"SELECT '", b"(" * 100_000):
            assert http.post("/", content=content).status_code >= 400
        for _ in range(3):
            with http.stream("POST", "/", content="SELECT number FROM numbers(100000000) FORMAT CSV") as answer:
                next(answer.iter_bytes())
        assert http.post("/", content="SELECT 1").text == "1\n"
    assert engine.running
    assert engine.stop() == 0


def test_a_stream_that_fails_is_no_whole_result(clickhouse_client: Client) -> None:
    query = "SELECT throwIf(number = 900000) FROM numbers(1000000) SETTINGS max_threads = 1"
    with pytest.raises(DatabaseError), clickhouse_client.query_rows_stream(query) as rows:
        for _ in rows:
            pass


def test_it_ends_while_a_client_keeps_its_connection(clickhouse_factory: Callable[[], ClickHouseLocal]) -> None:
    engine = clickhouse_factory()
    engine.start()
    with httpx.Client(base_url=engine.url, trust_env=False) as http:
        assert http.get("/ping").text == "Ok.\n"
        engine.terminate()
        until(lambda: not engine.running)
    assert engine.exit_code == 0
