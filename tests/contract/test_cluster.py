"""Three brokers in containers, replication 3, min ISR 2: one at a time is killed, paused, cut off, the leader first.

What was answered 202 is in the log at its receipt's offsets, and counts once, live and stored, whichever broker is away.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]
from docker.models.containers import Container
from pydantic import SecretStr

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.docker import kafka_environment
from deploy.local.process import free_ports
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from schemas.topics import USAGE_EVENTS, topic_name
from schemas.usage_batch import decode
from tests.contract.containers import kafka_image
from tests.services import Service, environment
from tests.waiting import until
from warehouse.migrate import migrate

pytestmark = pytest.mark.timeout(580)

NODES = (1, 2, 3)
PARTITIONS = 3
ADMIN = "ubk_admin_of_the_whole_cluster"
EVENTS_PER_BATCH = 20
AWAY_SECONDS = 6.0  # longer than a broker's session, so that another leads; shorter than any client's patience


class Cluster:
    """Three brokers, each reached by this machine at its port and by the others over a network of their own."""

    def __init__(self, engine: docker.DockerClient, image: str, name: str) -> None:
        self._network = engine.networks.create(name, driver="bridge")
        self._ports: dict[int, int] = dict(zip(NODES, free_ports(len(NODES)), strict=True))
        self.servers = ",".join(f"127.0.0.1:{port}" for port in self._ports.values())
        self._names = {node: f"{name}-{node}" for node in NODES}
        self.nodes: dict[int, Container] = {}
        outer = engine.networks.get("bridge")
        for node in NODES:
            port = self._ports[node]
            container = engine.containers.create(
                image,
                name=self._names[node],
                environment=self._environment(node),
                network=name,
                ports={f"{port}/tcp": ("127.0.0.1", port)},
            )
            self.nodes[node] = container
            outer.connect(container)  # cut off from the others, it is still reached by its clients
            container.start()
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})

    def _environment(self, node: int) -> dict[str, str]:
        port = self._ports[node]
        return {
            **kafka_environment(port),
            "KAFKA_NODE_ID": str(node),
            "KAFKA_LISTENERS": f"INNER://:9091,PLAINTEXT://:{port},CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"INNER://{self._names[node]}:9091,PLAINTEXT://127.0.0.1:{port}",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "INNER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "KAFKA_INTER_BROKER_LISTENER_NAME": "INNER",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": ",".join(f"{each}@{name}:9093" for each, name in self._names.items()),
            "KAFKA_CONTROLLED_SHUTDOWN_ENABLE": "true",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "3",
            "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "3",
            "KAFKA_MIN_INSYNC_REPLICAS": "2",
        }

    def kill(self, node: int) -> None:
        self.nodes[node].kill()

    def start(self, node: int) -> None:
        self.nodes[node].start()

    def pause(self, node: int) -> None:
        """As SIGSTOP: not every kernel lets an engine freeze a container's group."""
        self.nodes[node].kill("SIGSTOP")

    def unpause(self, node: int) -> None:
        self.nodes[node].kill("SIGCONT")

    def cut(self, node: int) -> None:
        """From the others, not from its clients."""
        self._network.disconnect(self.nodes[node])

    def join(self, node: int) -> None:
        self._network.connect(self.nodes[node])

    def leader(self, topic: str, partition: int, besides: int | None = None) -> int:
        """-1 while there is none. besides: a node that is not to be asked, since it may believe to lead still."""
        servers = ",".join(f"127.0.0.1:{port}" for node, port in self._ports.items() if node != besides)
        admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        return admin.list_topics(topic, timeout=5).topics[topic].partitions[partition].leader

    def moved(self, topic: str, node: int) -> bool:
        """Whether another than this node leads partition 0."""
        return self.leader(topic, 0, besides=node) not in (node, -1)

    def whole(self, topic: str) -> bool:
        """Whether every replica of every partition is in sync."""
        partitions = self.admin.list_topics(topic, timeout=10).topics[topic].partitions.values()
        return all(len(each.isrs) == len(NODES) for each in partitions)

    def up(self) -> bool:
        return len(self.admin.list_topics(timeout=5).brokers) == len(NODES)

    def remove(self) -> None:
        for container in self.nodes.values():
            container.remove(force=True, v=True)
        self._network.remove()


@pytest.fixture
def cluster(unique: str) -> Iterator[Cluster]:
    image = kafka_image()
    with contextlib.closing(docker.DockerClient.from_env(timeout=120)) as engine:
        made = Cluster(engine, image, unique)
        try:
            until(lambda: _quietly(made.up), 90, every=0.5)
            yield made
        finally:
            made.remove()


def _quietly(condition: Callable[[], bool]) -> bool:
    """False while nobody answers."""
    from confluent_kafka import KafkaException

    try:
        return condition()
    except KafkaException:
        return False


@dataclass
class Producer:
    """Posts batches with ids, each until it is answered 202. receipts: id of a batch → (partition, first, last)."""

    http: httpx.Client
    receipts: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict[str, list[tuple[int, int, int]]])
    answered_at: float = 0.0
    failures: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            name = f"b{number}"
            while (answer := self._post(name)) is None or answer.status_code != 202:
                self.failures += 1
                self.stopping.wait(0.2)
            self.receipts[name] = [
                (part["partition"], part["first_offset"], part["last_offset"]) for part in answer.json()["receipt"]
            ]
            self.answered_at = time.monotonic()
            self.stopping.wait(0.05)

    def _post(self, name: str) -> httpx.Response | None:
        events = [
            {
                "customer_id": f"cus_{index % 6}",
                "event_name": "calls",
                "timestamp": "2026-03-10T12:00:00Z",
                "value": "0.5",
                "event_id": f"{name}-{index}",
            }
            for index in range(EVENTS_PER_BATCH)
        ]
        try:
            return self.http.post("/api/v1/usage/events", json={"events": events})
        except httpx.HTTPError:
            return None


def test_one_broker_away_at_a_time_loses_and_doubles_nothing(
    cluster: Cluster, clickhouse: ClickHouseLocal, database: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        kafka_bootstrap_servers=cluster.servers,
        kafka_replication_factor=3,
        kafka_min_insync_replicas=2,
        clickhouse_dsn=clickhouse.dsn(database),
        topic_prefix=topic_prefix,
        event_partitions=PARTITIONS,
        admin_key=SecretStr(ADMIN),
    )
    create_topics(settings)
    migrate(settings)
    topic = topic_name(settings, USAGE_EVENTS)
    until(lambda: cluster.whole(topic), 60)
    services = [Service(name, environment(settings), tmp_path) for name in ("serve", "sink", "aggregator")]
    for service in services:
        service.launch()
    try:
        for service in services:
            service.wait_until(service.ready, 90)
        headers = {"Authorization": f"Bearer {ADMIN}"}
        with httpx.Client(base_url=services[0].address, headers=headers, timeout=30, trust_env=False) as http:
            meter = http.post(
                "/api/v1/meters", json={"name": "calls", "event_name": "calls", "unit": "1", "aggregation": "sum"}
            ).json()["id"]
            for number in range(6):
                made = http.post(
                    "/api/v1/customers", json={"id": f"cus_{number}", "name": "c", "email": "c@example.com"}
                )
                assert made.status_code == 201, made.text
            producer = Producer(http)
            thread = threading.Thread(target=producer.run, daemon=True)
            thread.start()
            try:
                until(lambda: producer.receipts)
                for harm, heal in (
                    (cluster.kill, cluster.start),
                    (cluster.pause, cluster.unpause),
                    (cluster.cut, cluster.join),
                ):
                    leader = cluster.leader(topic, 0)
                    harm(leader)
                    harmed = time.monotonic()
                    try:
                        # Another leads, and what is sent after the fault is acknowledged.
                        until(lambda leader=leader: _quietly(lambda: cluster.moved(topic, leader)), 60, every=0.3)
                        until(lambda harmed=harmed: producer.answered_at > harmed + 2, 60)
                        until(lambda harmed=harmed: time.monotonic() > harmed + AWAY_SECONDS)
                    finally:
                        heal(leader)
                    until(lambda: _keep(services) and _quietly(lambda: cluster.whole(topic)), 90, every=0.2)
            finally:
                producer.stopping.set()
                thread.join(60)
            assert not thread.is_alive()

            log = _log(settings)
            for name, ranges in producer.receipts.items():
                there = {
                    identity
                    for partition, first, last in ranges
                    for offset in range(first, last + 1)
                    for identity in log[partition, offset]
                }
                assert {f"c:{name}-{index}" for index in range(EVENTS_PER_BATCH)} <= there, name
            worth = Decimal("0.5") * EVENTS_PER_BATCH * len(producer.receipts)
            for path, more in (("/usage/live", {}), ("/usage", {"window": "month"})):
                until(
                    lambda path=path, more=more: _keep(services) and _total(http, meter, path, more) == worth,
                    120,
                    every=0.5,
                )
    finally:
        for service in services:
            service.stop()


def _keep(services: list[Service]) -> bool:
    """What ended while a broker was away is started again, as by whoever runs it. True."""
    for service in services:
        if not service.running:
            service.launch()
    return True


def _total(http: httpx.Client, meter: str, path: str, more: dict[str, str]) -> Decimal:
    total = Decimal(0)
    for number in range(6):
        query = {"customer_id": f"cus_{number}", "meter_id": meter, **more}
        query |= {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z"}
        try:
            answer = http.get(f"/api/v1{path}", params=query)
        except httpx.HTTPError:
            return Decimal(-1)
        rows: list[dict[str, Any]] = answer.json()["data"] if answer.status_code == 200 else []
        total += sum((Decimal(row["quantity"]) for row in rows), Decimal(0))
    return total


def _log(settings: Settings) -> dict[tuple[int, int], tuple[str, ...]]:
    """(partition, offset) → the identities of the message."""
    consumer = Consumer({**settings.kafka_properties, "group.id": "reader", "enable.partition.eof": True})
    topic, unread = topic_name(settings, USAGE_EVENTS), set(range(PARTITIONS))
    consumer.assign([TopicPartition(topic, partition, 0) for partition in unread])
    found: dict[tuple[int, int], tuple[str, ...]] = {}
    try:
        while unread:
            message = consumer.poll(20)
            assert message is not None
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:  # pyright: ignore[reportPrivateUsage]
                    unread.discard(message.partition() or 0)  # else of a connection: the client goes on by itself
            else:
                found[message.partition() or 0, message.offset() or 0] = tuple(decode(message.value() or b"").identity)
    finally:
        consumer.close()
    return found
