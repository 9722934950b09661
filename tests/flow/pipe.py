"""A merchant's whole system: every service in a process of its own, on the session's broker and engine."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from confluent_kafka import Consumer, TopicPartition

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from schemas.topics import USAGE_EVENTS, topic_name
from tests.flow.billing import BillingWorld
from tests.known import make_known
from tests.services import Service

ADMIN = "ubk_admin_of_the_whole_pipe"
WHOLE_TIME = {"from": "2026-01-01T00:00:00Z", "to": "2026-05-01T00:00:00Z"}


class Pipe:
    """A BillingWorld with gateway, dashboard and aggregator in front, seen through the HTTP API."""

    def __init__(self, kafka: KafkaBroker, clickhouse: ClickHouseLocal, directory: Path, **settings: Any) -> None:
        self.world = BillingWorld(kafka, clickhouse, directory, **settings)
        env = {**self.world.env, "USAGE_ADMIN_KEY": ADMIN}
        self.serve = Service("serve", env, directory)
        self.aggregator = Service("aggregator", env, directory)

    def __enter__(self) -> Pipe:
        self.world.__enter__()
        for service in (self.serve, self.aggregator):
            service.launch()
        for service in (self.serve, self.aggregator):
            service.wait_until(service.ready, 60)
        self.http = httpx.Client(base_url=self.serve.address, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20)
        return self

    def __exit__(self, *error: Any) -> None:
        self.http.close()
        self.serve.stop()
        self.aggregator.stop()
        self.world.__exit__(*error)

    def post(self, *events: dict[str, Any], **headers: str) -> httpx.Response:
        """Usage of customers that the catalog knows; it learns of them first where it does not."""
        make_known(self.world.catalog, (event["customer_id"] for event in events))
        return self.http.post("/api/v1/usage/events", json={"events": events}, headers=headers)

    def accepted(self, *events: dict[str, Any], **headers: str) -> None:
        answer = self.post(*events, **headers)
        assert answer.status_code == 202, answer.text

    def send_again(self, partition: int, offset: int) -> None:
        """Write the message at a place of usage.events a second time, as a client library or a mirror may."""
        topic = topic_name(self.world.settings, USAGE_EVENTS)
        consumer = Consumer({**self.world.settings.kafka_properties, "group.id": "test"})
        consumer.assign([TopicPartition(topic, partition, offset)])
        message = consumer.poll(20)
        assert message is not None
        assert message.offset() == offset
        consumer.close()
        self.world.producer.produce(topic, message.value(), partition=partition)
        assert self.world.producer.flush(10) == 0

    def quantity(self, path: str, customer: str, meter: str = "mtr_calls") -> Decimal:
        """Sum over the cycles or months of /usage/live or /usage."""
        params = {"customer_id": customer, "meter_id": meter, **WHOLE_TIME}
        answer = self.http.get(
            f"/api/v1{path}", params=params if path.endswith("live") else {**params, "window": "month"}
        )
        assert answer.status_code == 200, answer.text
        return sum((Decimal(row["quantity"]) for row in answer.json()["data"]), Decimal(0))

    def stored_now(self, customer: str, meter: str) -> Decimal:
        """Of the present month, from ClickHouse."""
        answer = self.http.get("/api/v1/usage", params={"customer_id": customer, "meter_id": meter})
        assert answer.status_code == 200, answer.text
        return sum((Decimal(row["quantity"]) for row in answer.json()["data"]), Decimal(0))

    def everywhere(self, customer: str, expected: str, meter: str = "mtr_calls") -> None:
        """Live totals and ClickHouse come to the quantity, and stay there."""
        for path in ("/usage/live", "/usage"):
            self.world.until(lambda path=path: self.quantity(path, customer, meter) == Decimal(expected))


def event(customer: str, value: object = 1, at: str = "2026-03-10T12:00:00Z", **more: Any) -> dict[str, Any]:
    return {"customer_id": customer, "event_name": "calls", "timestamp": at, "value": value, **more}
