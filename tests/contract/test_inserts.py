"""Messages that ClickHouse refuses, on the real engine: each alone, and its neighbours are stored whole."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas import usage_batch
from schemas.settings import Settings
from stream_processors.avro_splice import Message, read_head
from stream_processors.inserts import Refused, insert
from tests.history import Sent, Void, Written, encoded
from warehouse.client import ClickHouseError, Client, connect
from warehouse.migrate import migrate

EVENTS = Written((Sent("o", "a", "calls", "", 5, 1), Sent("o", "b", "calls", "c:1", 6, None)))


@pytest.fixture
def client(clickhouse: ClickHouseLocal) -> Iterator[Client]:
    name = f"i{secrets.token_hex(6)}"
    migrate(Settings(clickhouse_dsn=clickhouse.dsn(name)))
    with connect(Settings(clickhouse_dsn=clickhouse.dsn(name))) as made:
        yield made
        made.command(f"DROP DATABASE {name} SYNC")


class OneAttempt:
    """The engine as the sink has it; nothing is waited out."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def attempt(self, work: Callable[[Client], object]) -> Exception | None:
        try:
            work(self._client)
        except ClickHouseError as error:
            return error
        return None

    def wait(self, error: Exception) -> None:
        raise AssertionError("the data is not at fault") from error


def message(offset: int, payload: bytes) -> Message:
    return read_head(1, 0, offset, payload, None)


GOOD = encoded(EVENTS)


def changed(**columns: object) -> bytes:
    return usage_batch.encode(replace(usage_batch.decode(GOOD), **columns))  # pyright: ignore[reportArgumentType]


DAMAGED: list[tuple[str, bytes]] = [
    ("cut short",                 GOOD[:-3]),
    ("bytes too many",            GOOD + bytes(3)),
    ("no UTF-8",                  GOOD.replace(b"calls", b"\xff\xfells", 1)),
    ("a name too few",            changed(event_name=("calls",))),
    ("an identity too few",       changed(identity=("c:1",))),
    ("a value of 20 bytes",       changed(value=(b"\x7f" * 20, None))),
    ("a value of 10^18",          changed(value=((10**27).to_bytes(12, "big"), None))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bad"), DAMAGED, ids=[name for name, _ in DAMAGED])
def test_a_message_at_fault_is_refused_alone(client: Client, name: str, bad: bytes) -> None:
    void = encoded(Written((Void("o", "b", "calls", "c:1"),)))
    messages = [message(0, GOOD), message(1, GOOD), message(2, bad), message(3, GOOD), message(4, void)]
    refused = list(insert(messages, OneAttempt(client)))
    assert [type(each) for each in refused] == [Refused]
    assert refused[0].message.offset == 2
    stored = "SELECT kafka_offset, events, reason FROM ingest_batches FINAL ORDER BY kafka_offset"
    assert client.query(stored).result_rows == [(0, 2, ""), (1, 2, ""), (3, 2, ""), (4, 0, "void")]
    # Events without an id count each time, c:1 once, and the tombstone takes that one out.
    assert client.query("SELECT count() FROM usage_accepted FINAL").result_rows == [(6,)]
    assert client.query("SELECT count(), sum(value) FROM usage").result_rows == [(3, Decimal("3e-9"))]
