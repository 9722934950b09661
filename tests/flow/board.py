"""A dashboard that is served on a real broker and engine, and what writes to its topics: for tests of pages."""

import asyncio
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from confluent_kafka import Producer
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from catalog.store import CatalogStore
from dashboard.app import Dashboard
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from ledger.store import LedgerLog
from runtime.kafka.admin import create_topics
from schemas import alert as alerts
from schemas import totals
from schemas.alert import Alert
from schemas.alert_rule import AlertKind, alert_id
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import ApiKey, Organization, Scope, new_secret, secret_digest
from schemas.partition import partition_of
from schemas.period import calendar_month_containing
from schemas.settings import Settings
from schemas.topics import USAGE_ALERTS, USAGE_TOTALS, topic_name
from schemas.totals import UsageTotal
from tests.waiting import until
from usage_billing.billing_adapter import BillingAdapter
from warehouse.migrate import migrate

ZONE = "America/New_York"
KEY, READ_KEY, OTHER_KEY = new_secret(), new_secret(), new_secret()
PARTITIONS = 2


def own(organization: str, id_: str) -> dict[str, Any]:
    return {"id": id_, "organization_id": organization, "created_at": 0}


@dataclass
class Running:
    """A dashboard that is served, and what writes to its topics."""

    address: str
    settings: Settings
    store: CatalogStore
    board: Dashboard
    producer: Producer

    def total(self, customer: str, flights: int, miles: str, offset: int, organization: str = "default") -> UsageTotal:
        """Publish what the aggregator would."""
        cycle = calendar_month_containing(ZONE, time.time_ns() // 1000)
        partition = partition_of(organization, customer, PARTITIONS)
        record = UsageTotal(
            organization, customer, "flight", cycle.start_us, cycle.end_us, miles, flights, "1", "topic", partition, 0,
            offset, time.time_ns() // 1000,
        )  # fmt: skip
        key = totals.total_key(organization, customer, "flight", cycle.start_us, cycle.end_us)
        self.producer.produce(topic_name(self.settings, USAGE_TOTALS), totals.encode(record), key, partition)
        self.producer.flush()
        return record

    def alert(self, customer: str, organization: str = "default") -> Alert:
        record = Alert(
            alert_id("rule_1", customer, 0), organization, "rule_1", customer, "mtr_flights", AlertKind.QUANTITY, "80",
            "90", 0, 1_000_000, time.time_ns() // 1000,
        )  # fmt: skip
        partition = partition_of(organization, customer, PARTITIONS)
        self.producer.produce(topic_name(self.settings, USAGE_ALERTS), alerts.encode(record), record.key, partition)
        self.producer.flush()
        return record

    def get(self, path: str, key: str = READ_KEY, **parameters: Any) -> Any:
        answer = httpx.get(
            f"{self.address}/api/v1{path}", params=parameters, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


def serve(board: Dashboard, port: int, stopping: threading.Event) -> threading.Thread:
    """Serve in a thread with a loop of its own, as a process does."""

    async def run() -> None:
        board.start()
        server = Server(board.app, "127.0.0.1", port, interface=Interfaces.ASGI, log_level=LogLevels.warning)
        serving = asyncio.create_task(server.serve())
        while not stopping.is_set() and not serving.done():
            await asyncio.sleep(0.05)
        await board.stop()
        server.stop()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    return thread


@contextmanager
def billing_board(settings: Settings, catalog: CatalogStore, ledger: LedgerLog) -> Generator[str]:
    """The address of a dashboard that may change invoices, until the block ends."""
    billing = BillingAdapter(settings, catalog, ledger)
    board = Dashboard(settings, catalog, billing)
    (port,) = free_ports(1)
    stopping = threading.Event()
    thread = serve(board, port, stopping)
    until(lambda: board.services.live.check() is None, 30)
    yield f"http://127.0.0.1:{port}"
    stopping.set()
    thread.join(20)
    billing.close()


@contextmanager
def running_board(kafka: KafkaBroker, clickhouse: ClickHouseLocal, name: str, **more: Any) -> Generator[Running]:
    """name: of its topics and its database. more: settings."""
    (port,) = free_ports(1)
    settings = Settings(  # pyright: ignore[reportCallIssue]
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        topic_prefix=f"{name}.",
        event_partitions=PARTITIONS,
        http_port=port,
        clickhouse_dsn=clickhouse.dsn(name),
        **more,
    )
    create_topics(settings)
    migrate(settings)
    with CatalogStore(settings) as store:
        for tenant in ("default", "other"):
            store.write(Organization(**own(tenant, tenant), name=f"{tenant} <b>inc</b>", time_zone=ZONE), 0)
            for meter, aggregation in (("mtr_flights", Aggregation.COUNT), ("mtr_miles", Aggregation.SUM)):
                store.write(
                    Meter(**own(tenant, meter), name=meter[4:], event_name="flight", unit="u", aggregation=aggregation),
                    0,
                )
            store.write(Customer(**own(tenant, "UA"), name="United <script>window.ran = 1</script>"), 0)
        for secret, organization, scope in (
            (KEY, "default", Scope.ADMIN), (READ_KEY, "default", Scope.READ), (OTHER_KEY, "other", Scope.ADMIN),
        ):  # fmt: skip
            digest = secret_digest(secret)
            store.write(
                ApiKey(**own(organization, f"key_{digest[:8]}"), scopes=(scope,), sha256=digest, hint="0000"), 0
            )
        board = Dashboard(settings, store)
        stopping = threading.Event()
        thread = serve(board, port, stopping)
        started = Running(
            f"http://127.0.0.1:{port}", settings, store, board, Producer({"bootstrap.servers": kafka.bootstrap_servers})
        )
        until(lambda: board.services.live.check() is None, 30)
        until(lambda: _answers(started.address), 30)
        yield started
        stopping.set()
        thread.join(20)
        assert not thread.is_alive()


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/sign-in").status_code == 200
    except httpx.TransportError:
        return False


def signed_in(running: Running, key: str = KEY) -> httpx.Client:
    cookies = httpx.post(f"{running.address}/sign-in", data={"key": key}).cookies
    assert "usage_session" in cookies
    return httpx.Client(base_url=running.address, headers={"Accept": "text/html"}, cookies=cookies, timeout=30)
