"""The same contract on a Kafka in a container: what a user with Docker, or a cluster of their own, runs.

Needs a container engine. Where none answers the tests are skipped, but not where USAGE_TEST_CONTAINERS is `required`
(.ci/run sets it, after it has started one). USAGE_TEST_KAFKA_IMAGE names another image than the official one.
"""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]
from pydantic import SecretStr
from testcontainers.core.container import DockerContainer

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.docker import kafka_environment
from deploy.local.process import free_ports
from deploy.local.supervisor import probe
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from tests.contract.containers import kafka_image
from tests.services import Service, environment
from tests.waiting import until
from warehouse.migrate import migrate

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def container() -> Iterator[tuple[DockerContainer, str]]:
    """A running broker in a container, and its bootstrap servers."""
    image = kafka_image()
    (port,) = free_ports(1)
    running = DockerContainer(image)
    running.ports[f"{port}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]  # with_bind_ports takes no address
    for name, value in kafka_environment(port).items():
        running = running.with_env(name, value)
    with running:
        servers = f"127.0.0.1:{port}"
        until(lambda: probe(f"kafka://{servers}") is None, 60)
        yield running, servers


def test_messages_survive_a_killed_container(container: tuple[DockerContainer, str], unique: str) -> None:
    running, servers = container
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    admin.create_topics([NewTopic(unique, 3, 1)])[unique].result(15)
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "log_level": 0})
    producer.produce(unique, b"before", partition=1)
    assert producer.flush(15) == 0

    running.get_wrapped_container().kill()
    running.get_wrapped_container().start()
    producer.produce(unique, b"after", partition=1)
    assert producer.flush(60) == 0

    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": unique, "auto.offset.reset": "earliest", "log_level": 0}
    )
    consumer.subscribe([unique])
    try:
        read: list[bytes | None] = []

        def poll() -> bool:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                read.append(message.value())
            return len(read) == 2

        until(poll, 30)
        assert read == [b"before", b"after"]
    finally:
        consumer.close()


def test_gateway_sink_and_aggregator_agree_after_the_broker_was_killed(
    container: tuple[DockerContainer, str],
    clickhouse: ClickHouseLocal,
    database: str,
    topic_prefix: str,
    tmp_path: Path,
) -> None:
    """Producer, sink and aggregator on the container's broker: what was answered 202 counts once, live and stored."""
    running, servers = container
    settings = Settings(
        kafka_bootstrap_servers=servers,
        clickhouse_dsn=clickhouse.dsn(database),
        topic_prefix=topic_prefix,
        event_partitions=3,
        admin_key=SecretStr("ubk_admin_of_the_container"),
    )
    create_topics(settings)
    migrate(settings)
    services = [Service(name, environment(settings), tmp_path) for name in ("serve", "sink", "aggregator")]
    try:
        for service in services:
            service.launch()
        for service in services:
            service.wait_until(service.ready, 90)
        headers = {"Authorization": "Bearer ubk_admin_of_the_container"}
        with httpx.Client(base_url=services[0].address, headers=headers, timeout=30, trust_env=False) as http:
            meter = http.post(
                "/api/v1/meters", json={"name": "calls", "event_name": "calls", "unit": "1", "aggregation": "sum"}
            )
            assert meter.status_code == 201, meter.text
            customer = http.post("/api/v1/customers", json={"id": "cus_1", "name": "One", "email": "one@example.com"})
            assert customer.status_code == 201, customer.text

            assert _post(http, "before").json()["accepted"] == 100
            running.get_wrapped_container().kill()
            running.get_wrapped_container().start()
            # A 503 leaves open whether the batch is in the log: with ids it may be sent until it is answered 202.
            until(lambda: _post(http, "after").status_code == 202, 120, every=0.5)
            assert _post(http, "before").status_code == 202

            march = {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z"}
            query = {"customer_id": "cus_1", "meter_id": meter.json()["id"], **march}

            def counted(path: str, more: dict[str, str]) -> bool:
                # Sink and aggregator may end when the broker is away; whoever runs them starts them again.
                for service in services:
                    if not service.running:
                        service.launch()
                return _quantity(http, path, query | more) == Decimal("200.2")

            for path, more in (("/usage/live", {}), ("/usage", {"window": "month"})):
                until(lambda path=path, more=more: counted(path, more), 120, every=0.2)
    finally:
        for service in services:
            service.stop()


def _post(http: httpx.Client, name: str) -> httpx.Response:
    """100 events with ids of their own, worth 100.1 together."""
    values = ["1"] * 99 + ["1.1"]
    event = {"customer_id": "cus_1", "event_name": "calls", "timestamp": "2026-03-10T12:00:00Z"}
    events = [{**event, "value": value, "event_id": f"{name}-{at}"} for at, value in enumerate(values)]
    return http.post("/api/v1/usage/events", json={"events": events})


def _quantity(http: httpx.Client, path: str, query: dict[str, str]) -> Decimal:
    answer = http.get(f"/api/v1{path}", params=query)
    rows = answer.json()["data"] if answer.status_code == 200 else []
    return sum((Decimal(row["quantity"]) for row in rows), Decimal(0))
