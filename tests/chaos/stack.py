"""Everything that a merchant runs, a process each → started, broken, and started again by who watches over it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import clickhouse_connect
import httpx
from confluent_kafka import Producer
from pydantic import SecretStr

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import HOST, ManagedProcess, free_ports
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from tests.chaos.proxy import Proxy
from tests.receiver import Receiver
from tests.services import Service, environment
from tests.standin import stripe_standin
from warehouse.migrate import migrate

ADMIN = "ubk_admin_of_the_chaos_run"
PARTITIONS = 4
GRACE_SECONDS = 3
GIVES_UP_MS = 3_000  # the client library of the gateway, on a message
ALERT_THRESHOLDS = (20, 200)
UNIT_AMOUNTS = {"count": "0.01", "sum": "0.001", "max": "0.5"}  # by the meter's aggregation
SPREAD = 0.8  # cycles end between the beginning and this share of the run
_RESTART_SECONDS = 0.5
_DAY = timedelta(days=1)
_READY_SECONDS = 90.0


class Part:
    """A process that is to run. held: it is down on purpose. kind: aggregators are parts of one kind, for example."""

    def __init__(
        self, kind: str, process: ManagedProcess, launch: Callable[[], None], ready: Callable[[], bool]
    ) -> None:
        self.kind = kind
        self.process = process
        self.launch = launch
        self.ready = ready
        self.held = False
        self.broken = False  # a fault is being done to it
        self.ended_by_itself = 0
        self.killed_at: list[float] = []  # monotonic seconds
        self._died_at: float | None = None

    def keep(self) -> None:
        """Start it again when it has died, a moment later, as a supervisor does."""
        if self.held or self.process.running:
            self._died_at = None
            return
        now = time.monotonic()
        if self._died_at is None:
            self._died_at = now
            if not self.broken:
                self.ended_by_itself += 1
        elif now - self._died_at >= _RESTART_SECONDS:
            self._died_at = None
            self.launch()


class Stack:
    """One gateway with dashboard, two aggregators, two sinks, a billing worker; broker, engine and Stripe's stand-in.

    A context manager: all ready on entry, all ended on exit. keep() is to be called often.
    """

    def __init__(self, directory: Path, customers: int, seconds: float, shards: int = 1) -> None:
        """shards: ClickHouse servers that share usage."""
        self.directory = directory
        self.customers = [f"customer-{number}" for number in range(customers)]
        ports = free_ports(4 + shards)
        self.broker = KafkaBroker(
            directory / "kafka", ports[0], ports[1], directory / "kafka.log", proxied=(ports[2], ports[3])
        )
        self.proxy = Proxy(ports[3], ports[2])  # between the gateway and the broker
        self.engines = [
            ClickHouseLocal(directory / f"clickhouse{n or ''}", port, directory / f"clickhouse{n or ''}.log")
            for n, port in enumerate(ports[4:])
        ]
        dsns = [engine.dsn("usage") for engine in self.engines]
        self.stripe = stripe_standin(directory)
        self.settings = Settings(
            kafka_bootstrap_servers=self.broker.bootstrap_servers,
            clickhouse_dsn=dsns[0],
            clickhouse_shards=",".join(dsns) if shards > 1 else "",
            event_partitions=PARTITIONS,
            billing_seconds=1.0,
            sweep_seconds=3.0,
            reconcile_seconds=15.0,
            coverage_timeout_seconds=20.0,
            stripe_api_base=self.stripe.address,
            stripe_api_key=SecretStr(self.stripe.api_key),
            admin_key=SecretStr(ADMIN),
            webhook_private_targets=True,
        )
        self.receiver = Receiver()
        self.env = {
            **environment(self.settings),
            "STRIPE_API_BASE": self.stripe.address,
            "STRIPE_API_KEY": self.stripe.api_key,
        }
        kinds = ("serve", "aggregator", "aggregator", "sink", "sink", "billing", "aggregator")
        envs = [{**self.env, **through_the_proxy(ports[3])} if kind == "serve" else self.env for kind in kinds]
        self.services = [
            _part(Service(kind, env, directory / f"{kind}-{at}"))
            for at, (kind, env) in enumerate(zip(kinds, envs, strict=True))
        ]
        self.guest = self.services.pop()  # a third aggregator, which comes and goes
        self.guest.held = True
        self.kafka = Part(
            "kafka", self.broker, lambda: self.broker.spawn(self.broker.prepare()), lambda: self.broker.ready()
        )
        self.servers = [_server(engine) for engine in self.engines]
        self.producer = Producer({**self.settings.kafka_properties, "acks": "all", "log_level": 0})
        self.meters: dict[str, str] = {}  # aggregation → id
        self.rules: dict[str, int] = {}  # id → threshold of the count
        self.parts = [self.kafka, *self.servers, *self.services, self.guest]
        self.gateway = self._of("serve")
        # Each customer's cycle ends at another moment of the run, so that invoices are made all the time.
        self.began = datetime.now(UTC)
        step = timedelta(seconds=seconds * SPREAD / max(1, customers))
        self.ends = {each: self.began + step * number for number, each in enumerate(self.customers)}

    def of_kind(self, kind: str) -> list[Part]:
        return [part for part in self.services if part.kind == kind]

    def keep(self) -> None:
        for part in self.parts:
            part.keep()

    def command(self, *words: str) -> tuple[int, str]:
        """Exit code and output of `usage-billing` with these words."""
        program = str(Path(sys.executable).with_name("usage-billing"))
        done = subprocess.run(
            [program, *words], env=os.environ | self.env, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Of all ClickHouse servers, one after the other."""
        found: list[tuple[Any, ...]] = []
        for engine in self.engines:
            with clickhouse_connect.get_client(dsn=engine.dsn("usage"), autogenerate_session_id=False) as client:
                found += map(tuple, client.query(query).result_rows)
        return found

    @property
    def address(self) -> str:
        process = self.gateway.process
        assert isinstance(process, Service)
        return process.address

    def _of(self, kind: str) -> Part:
        return self.of_kind(kind)[0]

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Stack:
        self.proxy.__enter__()
        self.broker.start()
        for engine in self.engines:
            engine.start()
        self.stripe.__enter__()
        create_topics(self.settings)
        migrate(self.settings)
        self.gateway.launch()
        self._ready(self.gateway)
        self._configure()
        for part in self.services:
            if not part.process.running:
                part.launch()
        for part in self.services:
            self._ready(part)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for part in [*self.services, self.guest]:
            part.process.kill()
        self.receiver.end()
        self.stripe.__exit__()
        for engine in self.engines:
            engine.kill()
        self.broker.kill()
        self.proxy.__exit__()

    def _ready(self, part: Part) -> None:
        part.process.wait_until(part.ready, _READY_SECONDS)

    def _configure(self) -> None:
        """A count, a sum and a max meter; a product that prices all three; rules; customers and subscriptions."""
        with httpx.Client(
            base_url=f"{self.address}/api/v1", headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20
        ) as http:

            def made(path: str, body: dict[str, Any]) -> str:
                answer = http.post(path, json=body)
                assert answer.status_code == 201, answer.text
                return answer.json()["id"]

            answer = http.patch("/organization", json={"grace_seconds": GRACE_SECONDS})
            assert answer.status_code == 200, answer.text
            self.meters = {
                aggregation: made(
                    "/meters", {"name": aggregation, "event_name": name, "unit": "1", "aggregation": aggregation}
                )
                for name, aggregation in (("calls", "count"), ("calls", "sum"), ("peak", "max"))
            }
            prices = [
                {"model": "per_unit", "meter_id": self.meters[aggregation], "unit_amount": amount}
                for aggregation, amount in UNIT_AMOUNTS.items()
            ]
            product = made("/products", {"name": "all", "currency": "eur", "prices": prices})
            made("/webhook-endpoints", {"url": self.receiver.url("/alerts")})
            for threshold in ALERT_THRESHOLDS:
                rule: dict[str, Any] = {
                    "meter_id": self.meters["count"],
                    "kind": "quantity",
                    "threshold": str(threshold),
                }
                rule["past_cycles"] = True  # cycles end during the run, and a stage may be down for longer
                self.rules[made("/alert-rules", rule)] = threshold
            for customer, end in self.ends.items():
                made("/customers", {"id": customer, "name": customer, "payment_method": "pm_card_visa"})
                body = {"customer_id": customer, "product_id": product, "billing_interval": "day"}
                made("/subscriptions", {**body, "started_at": (end - _DAY).isoformat(), "backdate": True})

    def cycles(self, customer: str) -> Iterator[tuple[int, int]]:
        """The two cycles that the run touches, µs."""
        end = self.ends[customer]
        for start in (end - _DAY, end):
            yield _us(start), _us(start + _DAY)


def through_the_proxy(port: int) -> dict[str, str]:
    """Settings of a gateway whose way to the broker can be slow.

    Its client gives messages up so soon that the faults reach it; then it sends those after them again. That they have
    time left then, messages leave some time apart while others are under way.
    """
    return {
        "USAGE_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{port}",
        "USAGE_KAFKA_DELIVERY_TIMEOUT_MS": str(GIVES_UP_MS),
        "USAGE_KAFKA_RECONNECT_BACKOFF_MS": "10",
        "USAGE_LINGER_MS": "400",
    }


def _server(engine: ClickHouseLocal) -> Part:
    return Part("clickhouse", engine, lambda: engine.spawn(engine.command()), engine.ready)


def _part(service: Service) -> Part:
    return Part(service.name, service, service.launch, service.ready)


def _us(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
