"""A merchant whose billing is tested: real broker, engine and sink, Stripe's stand-in, and what was configured."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import clickhouse_connect
import httpx
from confluent_kafka import Consumer, Producer, TopicPartition
from stripe_standin.process import StripeStandin

from billing_job.close import CloseReport, close, close_cycles
from billing_job.context import BillingContext
from billing_job.service import BillingService
from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from ledger.invoice import Invoice
from ledger.store import LedgerLog
from runtime.kafka.admin import create_topics
from schemas.customer import Customer
from schemas.event import client_identity, unscaled_value
from schemas.meter import Aggregation, Meter
from schemas.organization import DEFAULT_ORGANIZATION, Organization
from schemas.partition import partition_of
from schemas.period import parse_rfc3339
from schemas.product import Product
from schemas.settings import Settings
from schemas.subscription import Subscription
from schemas.topics import BILLING_LEDGER, USAGE_EVENTS, topic_name
from schemas.usage_batch import UsageBatch, encode, unscaled_bytes
from schemas.usage_void import UsageVoids
from schemas.usage_void import encode as encode_voids
from tests.services import Service, environment
from tests.standin import stripe_standin
from tests.waiting import until
from warehouse.migrate import migrate

us = parse_rfc3339
MARCH, APRIL, MAY, JUNE = (us(f"2026-0{month}-01T00:00:00Z") for month in range(3, 7))
TIERS: dict[str, Any] = {
    "model": "graduated",
    "meter_id": "mtr_calls",
    "tiers": [
        {"up_to": "10000", "unit_amount": "0.002"},
        {"up_to": "100000", "unit_amount": "0.001"},
        {"up_to": None, "unit_amount": "0.0005"},
    ],
}
METERS = (
    ("mtr_calls", "calls", Aggregation.SUM),
    ("mtr_count", "calls", Aggregation.COUNT),
    ("mtr_peak", "peak", Aggregation.MAX),
)


class BillingWorld:
    """All of it. A context manager; every customer, product and subscription made through it is of one organization."""

    def __init__(
        self,
        kafka: KafkaBroker,
        clickhouse: ClickHouseLocal,
        directory: Path,
        *,
        stripe: StripeStandin | None = None,
        **settings: Any,
    ) -> None:
        self.name = f"b{secrets.token_hex(6)}"
        self.stripe = stripe or stripe_standin(directory)
        self._clickhouse = clickhouse
        self._admin = clickhouse_connect.get_client(dsn=clickhouse.dsn(), autogenerate_session_id=False)
        self._admin.command(f"CREATE DATABASE {self.name}")
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": kafka.bootstrap_servers,
            "topic_prefix": f"{self.name}.",
            "event_partitions": 3,
            "clickhouse_dsn": clickhouse.dsn(self.name),
            "stripe_api_base": self.stripe.address,
            "stripe_api_key": self.stripe.api_key,
            "stripe_timeout_seconds": 10.0,
            "stripe_retry_seconds": 5.0,
        }
        if "stripe.com" in self.stripe.address:
            values["stripe_webhook_secret"] = "whsec_of_the_test_mode"
        self.settings = Settings(**{**values, **settings})
        self.env = {
            **environment(self.settings),
            "STRIPE_API_BASE": self.stripe.address,
            "STRIPE_API_KEY": self.stripe.api_key,
        }
        create_topics(self.settings)
        migrate(self.settings)
        self.catalog = CatalogStore(self.settings)
        self.producer = Producer({**self.settings.kafka_properties, "acks": "all", "enable.idempotence": True})
        self._ends = Consumer({**self.settings.kafka_properties, "group.id": f"{self.name}-ends"})
        self.sink = Service("sink", self.env, directory)
        self.directory = directory

    def __enter__(self) -> BillingWorld:
        self.stripe.__enter__()
        self.catalog.start()
        self.catalog.write(
            Organization(id=DEFAULT_ORGANIZATION, organization_id=DEFAULT_ORGANIZATION, created_at=0, grace_seconds=0),
            0,
        )
        for meter_id, event_name, aggregation in METERS:
            self.catalog.write(
                Meter(
                    id=meter_id,
                    organization_id=DEFAULT_ORGANIZATION,
                    created_at=0,
                    name=meter_id,
                    event_name=event_name,
                    unit="units",
                    aggregation=aggregation,
                ),
                0,
            )
        self.sink.start()
        ledger = LedgerLog(self.settings)
        ledger.start()
        self.context = BillingContext(self.settings, catalog=self.catalog, ledger=ledger)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.context.close()
        self.context.log.stop()
        self._ends.close()
        self.sink.stop()
        self.catalog.stop()
        self.stripe.__exit__()
        self._admin.command(f"DROP DATABASE {self.name} SYNC")
        self._admin.close()

    # -- configuring and using -----------------------------------------------------------------------------------------

    def subscribe(self, customer: str, *prices: dict[str, Any], started_at: int = MARCH, **more: Any) -> Subscription:
        """A customer with a working card, and a subscription to a product of these prices (TIERS without any).

        more: fields of the customer, or of the subscription.
        """
        of_customer = {name: more.pop(name) for name in tuple(more) if name in Customer.model_fields}
        product = Product.model_validate(
            {
                "id": f"prod_{customer}",
                "organization_id": DEFAULT_ORGANIZATION,
                "created_at": 0,
                "name": customer,
                "currency": more.pop("currency", "eur"),
                "prices": prices or (TIERS,),
            }
        )
        self.catalog.write(product, 0)
        values = {"name": customer, "email": "customer@example.com", "payment_method": "pm_card_visa", **of_customer}
        self.catalog.write(
            Customer.model_validate(
                {"id": customer, "organization_id": DEFAULT_ORGANIZATION, "created_at": 0, **values}
            ),
            0,
        )
        subscription = Subscription.model_validate(
            {
                "id": f"sub_{customer}",
                "organization_id": DEFAULT_ORGANIZATION,
                "customer_id": customer,
                "product_id": product.id,
                "started_at": started_at,
                "billing_interval": "month",
                "collection_method": "charge_automatically",
                "time_zone": "UTC",
                "created_at": 0,
                **more,
            }
        )
        return self.catalog.write(subscription, 0)

    def use(
        self,
        customer: str,
        *values: str | None,
        at: int = MARCH + 1,
        event_name: str = "calls",
        identities: Sequence[str] = (),
    ) -> None:
        """Events as the gateway writes them: acknowledged when this returns."""
        n = len(values)
        batch = UsageBatch(
            batch_id=secrets.token_bytes(16),
            received_at=at,
            organization_id=[DEFAULT_ORGANIZATION] * n,
            customer_id=[customer] * n,
            event_name=[event_name] * n,
            timestamp=[at] * n,
            value=[None if value is None else unscaled_bytes(unscaled_value(value)) for value in values],
            identity=identities,
        )
        partition = partition_of(DEFAULT_ORGANIZATION, customer, self.settings.event_partitions)
        self.producer.produce(topic_name(self.settings, USAGE_EVENTS), encode(batch), partition=partition)
        assert self.producer.flush(10) == 0

    def void(self, customer: str, *event_ids: str, event_name: str = "calls") -> None:
        """Tombstones as the gateway writes them: acknowledged when this returns."""
        n = len(event_ids)
        voids = UsageVoids(
            batch_id=secrets.token_bytes(16),
            received_at=MARCH,
            organization_id=[DEFAULT_ORGANIZATION] * n,
            customer_id=[customer] * n,
            event_name=[event_name] * n,
            identity=[client_identity(event_id) for event_id in event_ids],
            reason=["a test's"] * n,
        )
        partition = partition_of(DEFAULT_ORGANIZATION, customer, self.settings.event_partitions)
        self.producer.produce(topic_name(self.settings, USAGE_EVENTS), encode_voids(voids), partition=partition)
        assert self.producer.flush(10) == 0

    # -- closing and looking -------------------------------------------------------------------------------------------

    def close(self, as_of: int = APRIL, settings: dict[str, Any] | None = None, **more: Any) -> CloseReport:
        """With what is open already, or, with settings changed for this run, with everything opened anew."""
        if settings is not None:
            return close(self.settings.model_copy(update=settings), as_of, **more)
        return close_cycles(self.context, as_of, **more)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """What ClickHouse has in this world's database."""
        client = clickhouse_connect.get_client(dsn=self._clickhouse.dsn(self.name), autogenerate_session_id=False)
        try:
            return [tuple(row) for row in client.query(statement).result_rows]
        finally:
            client.close()

    def until(self, condition: Callable[[], object]) -> None:
        until(condition, seconds=60)

    def spawn_close(self, as_of: int = APRIL) -> subprocess.Popen[bytes]:
        """`close` in a process of its own, to be killed. Its exit code is 1 when something is left to do."""
        code = (
            "from billing_job.close import close; from schemas.settings import Settings; "
            f"raise SystemExit(0 if close(Settings(), {as_of}).ok else 1)"
        )
        with (self.directory / "close.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", code], env=os.environ | self.env, stdout=log, stderr=log)

    @property
    def service(self) -> BillingService:
        """billing's service, with a ledger that is read to its end now."""
        self.ledger_size()
        return BillingService(self.context)

    def preview(self, customer: str, at_us: int) -> list[dict[str, Any]]:
        """The invoices of the customer's cycles at that time, as they would be now."""
        return self.service.preview(self.catalog.view.subscriptions_of(DEFAULT_ORGANIZATION, customer), at_us)

    def invoices(self, customer: str) -> list[Invoice]:
        """A customer's invoices as the ledger has them now."""
        self.ledger_size()
        return self.context.log.state.of_customer(DEFAULT_ORGANIZATION, customer)

    def ledger_size(self) -> dict[int, int]:
        """Partition → records in the ledger, which are all folded when this returns."""
        topic = topic_name(self.settings, BILLING_LEDGER)
        partitions = range(self.settings.event_partitions)
        ends = {p: self._ends.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in partitions}
        self.until(lambda: all(self.context.log.next_offsets[p] >= end for p, end in ends.items()))
        return ends

    def stripe_invoices(self, customer: str) -> list[dict[str, Any]]:
        """What Stripe has for a customer of ours, drafts too."""
        found = self.at_stripe("GET", "/v1/invoices", limit="100")["data"]
        return [each for each in found if each["metadata"].get("usage_customer_id") == customer]

    def at_stripe(self, method: str, path: str, **fields: str) -> dict[str, Any]:
        """What someone else does at Stripe, in its dashboard for example."""
        given: dict[str, Any] = {"params": fields} if method == "GET" else {"data": fields}
        headers = {"Authorization": f"Bearer {self.stripe.api_key}"}
        url = self.stripe.address + path
        answer = httpx.request(method, url, headers=headers, timeout=30, verify=False, trust_env=False, **given)
        assert answer.is_success, answer.text
        return answer.json()

    def changes(self) -> int:
        """How many calls so far could have changed anything at Stripe."""
        return sum(each["method"] != "GET" for each in self.stripe.requests())
