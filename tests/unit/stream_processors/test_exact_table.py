# pyright: reportPrivateUsage=false
"""The private corners of Faust that exactness rests on, and security settings in Faust's form."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer
from faust.auth import SASLCredentials, SSLCredentials
from faust.streams import Stream
from faust.tables.base import Collection
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import Message

from stream_processors.exact_table import (
    ExactApp,
    ExactTable,
    UnsupportedSecurity,
    broker_urls,
    commit,
    credentials,
    exact_app_settings,
    of_generation,
    release,
)

PARTS_RELIED_ON = [
    # where a new version would break exactness without an error: look at the release before changing this
    (faust.App, "_new_consumer"),
    (Consumer, "_commit_offsets"),
    (driver.AIOKafkaConsumerThread, "_ensure_consumer"),
    (AIOKafkaConsumer, "partitions_for_topic"),
    (Consumer, "seek"),
    (Consumer, "wait_empty"),
    (Consumer, "stop_flow"),
    (Collection, "on_rebalance"),
    (Collection, "persisted_offset"),
    (Collection, "apply_changelog_batch"),
    (Collection, "send_changelog"),
    (Recovery, "on_rebalance"),
    (Stream, "noack_take"),
    (Message, "ack"),
]


def test_versions_are_those_that_were_proven() -> None:
    assert version("faust-streaming") == "0.15.3"
    assert version("aiokafka").startswith("0.14.")


@pytest.mark.parametrize(("owner", "name"), PARTS_RELIED_ON)
def test_private_parts_are_there(owner: type[Any], name: str) -> None:
    assert callable(getattr(owner, name))


def test_private_parts_mean_what_they_meant() -> None:
    assert list(inspect.signature(Consumer._commit_offsets).parameters) == ["self", "offsets", "start_new_transaction"]
    assert list(inspect.signature(Stream.noack_take).parameters) == ["self", "max_", "within"]
    assert list(inspect.signature(Collection.on_rebalance).parameters) == [
        "self",
        "assigned",
        "revoked",
        "newly_assigned",
        "generation_id",
    ]
    assert "generation_id" in Message.__slots__
    drain = inspect.getsource(Consumer._drain_messages)
    assert "get_read_offset = self._read_offset.__getitem__" in drain
    assert "if r_offset is None or offset >= r_offset" in drain
    listener = inspect.getsource(driver.ConsumerRebalanceListener.on_partitions_assigned)
    assert "app.consumer_generation_id = generation" in listener


def _no_state(partition: int) -> Any:
    raise AssertionError(f"partition {partition} is not assigned")


def new_app() -> ExactApp:
    return ExactApp("tested", broker="kafka://127.0.0.1:1", **exact_app_settings())


def test_a_consumer_forgets_what_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust.App, "_new_consumer", lambda _: SimpleNamespace(_read_offset={}))  # starts no thread

    async def read_offsets() -> list[int | None]:
        consumer = new_app()._new_consumer()
        consumer._read_offset[TP("t", 0)] = 7
        consumer._read_offset.update({TP("t", 1): 8})
        return [consumer._read_offset[TP("t", partition)] for partition in range(3)]

    assert asyncio.run(read_offsets()) == [None] * 3


def test_a_table_says_that_there_is_nothing_to_recover_and_takes_no_writes() -> None:
    async def ask() -> list[int | None]:
        app = new_app()
        topic = app.topic("log", partitions=2, key_type=bytes, value_type=bytes)
        table: ExactTable[Any] = ExactTable(
            app, name="t", changelog_topic=topic, partitions=2, new_state=_no_state, properties={}
        )
        table._ends = {TP("log", 0): 12, TP("log", 1): 0}
        with pytest.raises(TypeError, match="DurableProducer"):
            table.send_changelog(0, b"key", b"value")
        return [table.persisted_offset(TP("log", partition)) for partition in (0, 1)]

    assert asyncio.run(ask()) == [11, None]


def test_messages_of_this_generation_by_partition_in_order() -> None:
    def event(partition: int, offset: int, generation: int) -> Any:
        message = SimpleNamespace(partition=partition, offset=offset, generation_id=generation)
        return SimpleNamespace(message=message)

    events = [event(1, 5, 3), event(0, 9, 3), event(1, 4, 3), event(1, 6, 2), event(1, 5, 3)]
    grouped = of_generation(events, 3)
    assert {partition: list(by_offset) for partition, by_offset in grouped.items()} == {0: [9], 1: [4, 5]}


def test_commits_only_in_its_generation_and_leaves_nothing_for_faust_to_commit() -> None:
    committed: list[dict[Any, int]] = []

    class Fake:
        def __init__(self) -> None:
            self._acked = {TP("t", 0): [3, 4]}
            self._acked_index = {TP("t", 0): {3, 4}}

        async def _commit_offsets(self, offsets: dict[Any, int]) -> None:
            committed.append(offsets)

    app: Any = SimpleNamespace(consumer=Fake(), consumer_generation_id=2)
    asyncio.run(commit(app, "t", {0: 5}, generation=1))
    asyncio.run(commit(app, "t", {}, generation=2))
    assert committed == []
    asyncio.run(commit(app, "t", {0: 5}, generation=2))
    assert committed == [{TP("t", 0): 5}]
    acked: list[Any] = []
    message = SimpleNamespace(tp=TP("t", 0), ack=acked.append)
    release(app, [SimpleNamespace(message=message)])
    assert acked == [app.consumer]
    assert (app.consumer._acked, app.consumer._acked_index) == ({TP("t", 0): []}, {TP("t", 0): set()})


@pytest.mark.parametrize(
    ("servers", "urls"),
    [
        ("127.0.0.1:9092", ["kafka://127.0.0.1:9092"]),
        ("SASL_SSL://a.example:9093, b.example:9094", ["kafka://a.example:9093", "kafka://b.example:9094"]),
    ],
)
def test_broker_addresses(servers: str, urls: list[str]) -> None:
    assert [str(url) for url in broker_urls({"bootstrap.servers": servers})] == urls


def test_security_settings_of_librdkafka_in_fausts_form() -> None:
    assert credentials({}) is None
    assert credentials({"security.protocol": "PLAINTEXT"}) is None
    encrypted = credentials({"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"})
    assert isinstance(encrypted, SSLCredentials)
    assert not encrypted.context.check_hostname
    sasl = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "u", "sasl.password": "p"}
    for protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
        signed = credentials({"security.protocol": protocol, **sasl})
        assert isinstance(signed, SASLCredentials)
        settings = driver.credentials_to_aiokafka_auth(signed, None)
        assert (settings["security_protocol"], settings["sasl_mechanism"]) == (protocol, "SCRAM-SHA-512")
        assert (settings["sasl_plain_username"], settings["sasl_plain_password"]) == ("u", "p")
        assert (settings["ssl_context"] is not None) == (protocol == "SASL_SSL")


@pytest.mark.parametrize(
    "properties",
    [
        {"security.protocol": "SASL_SSL"},
        {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "GSSAPI"},
        {"security.protocol": "QUIC"},
    ],
)
def test_security_that_faust_does_not_know_is_refused(properties: dict[str, str]) -> None:
    with pytest.raises(UnsupportedSecurity):
        credentials(properties)
