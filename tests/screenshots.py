"""A merchant's four months on a stack of its own → a picture of every page: `python -m tests.screenshots DIRECTORY`.

Usage is made up, with the same random numbers each time; everything else is what the product makes of it.
"""

from __future__ import annotations

import base64
import os
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page
from whenever import Instant, ZonedDateTime

from deploy.local import stack
from schemas.settings import Settings
from tests.flow.browser import browser, sign_in
from tests.flow.looks import PAGES, SIGN_IN, looks, pages_of_objects
from tests.receiver import Receiver
from tests.waiting import until
from usage_billing.client import UsageClient

QUALITY = 80
MONTHS_CLOSED = 3
NAME = "Skyline Data"
METERS = {
    "api_request": {"name": "API requests", "unit": "requests", "aggregation": "sum"},
    "storage": {"name": "Storage", "unit": "GB", "aggregation": "max"},
    "seat": {"name": "Active seats", "unit": "seats", "aggregation": "max"},
}
PRODUCTS: dict[str, list[dict[str, Any]]] = {
    "Starter": [
        {"event_name": "api_request", "model": "per_unit", "unit_amount": "0.002", "included_units": "50000"},
        {"event_name": "storage", "model": "per_unit", "unit_amount": "0.12", "included_units": "20"},
        {"model": "flat_fee", "amount": "19.00"},
    ],
    "Scale": [
        {
            "event_name": "api_request",
            "model": "graduated",
            "included_units": "100000",
            "tiers": [
                {"up_to": "250000", "unit_amount": "0.0015"},
                {"up_to": "1000000", "unit_amount": "0.001"},
                {"up_to": None, "unit_amount": "0.0006"},
            ],
        },
        {"event_name": "storage", "model": "per_unit", "unit_amount": "0.09"},
        {"event_name": "seat", "model": "per_unit", "unit_amount": "12.00", "included_units": "5"},
        {"model": "flat_fee", "amount": "99.00"},
    ],
}


@dataclass(frozen=True)
class Subscriber:
    """Who buys from the merchant. daily: API requests on a day, about."""

    id: str
    name: str
    product: str
    daily: int
    card: str = "pm_card_visa"


CUSTOMERS = (
    Subscriber("acme", "Acme Corporation", "Scale", 42_000),
    Subscriber("globex", "Globex", "Scale", 31_000),
    Subscriber("hooli", "Hooli", "Scale", 17_000),
    Subscriber("initech", "Initech", "Starter", 6_500),
    Subscriber("pied-piper", "Pied Piper", "Starter", 2_900),
    Subscriber("stark", "Stark Industries", "Scale", 9_800),
    Subscriber("umbrella", "Umbrella", "Starter", 1_400, "pm_card_chargeCustomerFail"),
    Subscriber("wayne", "Wayne Enterprises", "Starter", 4_200),
)


def text(moment: ZonedDateTime) -> str:
    """RFC 3339, in UTC: as text in the order of time."""
    return moment.to_instant().format_iso()


def usage(first: ZonedDateTime, now: ZonedDateTime) -> Iterator[dict[str, Any]]:
    """Every two hours an event of requests, once a day those of storage and seats; less at night and on weekends."""
    chance = random.Random(7)
    day, number = first, 0
    while day < now:
        growth = 1 + 0.004 * number
        week = 0.35 if day.date().day_of_week().value > 5 else 1.0
        for customer in CUSTOMERS:
            for hour in range(0, 24, 2):
                at = day.add(hours=hour)
                value = customer.daily / 12 * growth * week * (0.3 + 0.12 * min(hour, 24 - hour))
                if at < now:
                    yield {
                        "customer_id": customer.id,
                        "event_id": f"{customer.id}-{at.date()}-{hour}",
                        "event_name": "api_request",
                        "timestamp": text(at),
                        "value": round(value * chance.uniform(0.7, 1.3)),
                        "properties": {"region": chance.choice(("eu-west", "us-east", "ap-south"))},
                    }
            for event_name, value in (("storage", customer.daily / 400 * growth), ("seat", 3 + customer.daily // 4000)):
                yield {
                    "customer_id": customer.id,
                    "event_id": f"{event_name}-{customer.id}-{day.date()}",
                    "event_name": event_name,
                    "timestamp": text(day),
                    "value": round(value),
                }
        day, number = day.add(days=1), number + 1


@dataclass
class Sample:
    """What the merchant does, through the API alone. sent: events."""

    http: httpx.Client
    producer: UsageClient
    now: ZonedDateTime
    sent: int = 0

    def make(self, hooks: Receiver) -> None:
        """Returns when every month that is over is closed, and what is open is stored."""
        month = self.now.replace(day=1, hour=0, minute=0, second=0, nanosecond=0)
        first = month.subtract(months=MONTHS_CLOSED)
        self._organization(grace_seconds=366 * 86_400, name=NAME)  # nothing is closed before it was used
        meters = {name: self._post("meters", {"event_name": name, **fields})["id"] for name, fields in METERS.items()}
        self._catalog(meters, text(first))
        self._post("webhook-endpoints", {"url": hooks.url("/alerts")})
        events = list(usage(first, self.now))
        self._send([event for event in events if event["timestamp"] < text(month)])
        self._all_stored()
        for kind, meter, threshold in (
            ("included_percent", "api_request", "80"),
            ("typical_percent", "api_request", "80"),
            ("amount", "api_request", "250"),
            ("quantity", "storage", "75"),
        ):
            self._post("alert-rules", {"meter_id": meters[meter], "kind": kind, "threshold": threshold})
        self._organization(grace_seconds=0)
        until(lambda: self._invoices() >= len(CUSTOMERS) * MONTHS_CLOSED, seconds=120)
        self._send([event for event in events if event["timestamp"] >= text(month)])
        again = {"customer_id": "globex", "event_id": "globex-again", "event_name": "api_request"}
        for value in (1_200, 1_200, 2_400):
            self._send([{**again, "timestamp": text(month.add(hours=9)), "value": value}])
        self._all_stored()
        until(lambda: len(self._get("alerts")) > 4)

    def flow(self, ended: threading.Event) -> None:
        """Some events a second, until ended."""
        while not ended.wait(0.1):
            self._send(
                [
                    {
                        "customer_id": CUSTOMERS[n % 5].id,
                        "event_name": "api_request",
                        "value": 1 + n % 3,
                        "timestamp": Instant.now().format_iso(),
                    }
                    for n in range(40)
                ]
            )

    def _catalog(self, meters: dict[str, str], started_at: str) -> None:
        products: dict[str, str] = {}
        for name, prices in PRODUCTS.items():
            named = [
                {key: value for key, value in price.items() if key != "event_name"}
                | ({"meter_id": meters[price["event_name"]]} if "event_name" in price else {})
                for price in prices
            ]
            body = {"name": name, "currency": "eur", "prices": named, "benefits": ["email-support"]}
            products[name] = self._post("products", body)["id"]
        for customer in CUSTOMERS:
            fields = {"id": customer.id, "name": customer.name, "email": f"billing@{customer.id}.example"}
            self._post("customers", {**fields, "payment_method": customer.card})
            self._post(
                "subscriptions",
                {
                    "customer_id": customer.id,
                    "product_id": products[customer.product],
                    "started_at": started_at,
                    "backdate": True,
                },
            )

    def _send(self, events: list[dict[str, Any]]) -> None:
        self.sent += sum(receipt.accepted for receipt in self.producer.send_all(events))

    def _all_stored(self) -> None:
        def stored() -> bool:
            return self.http.get("/api/v1/audit", timeout=60).json()["accepted"]["events"] == self.sent

        until(stored, seconds=120)

    def _invoices(self) -> int:
        return sum(each["state"] in ("paid", "payment_failed") for each in self._get("invoices?limit=100"))

    def _organization(self, **fields: Any) -> None:
        self.http.patch("/api/v1/organization", json=fields).raise_for_status()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(f"/api/v1/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()

    def _get(self, path: str) -> list[dict[str, Any]]:
        return self.http.get(f"/api/v1/{path}").json()["data"]


def take(page: Page, address: str, paths: dict[str, str], directory: Path) -> None:
    """As WebP, which Playwright does not write by itself."""
    browser_itself = page.context.new_cdp_session(page)
    for look in looks(page, address, paths):
        answer = browser_itself.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
        (directory / f"{look}.webp").write_bytes(base64.b64decode(answer["data"]))
        print(look)


def main(directory: Path) -> None:
    """Pictures of every page into the directory."""
    hooks, ended = Receiver(), threading.Event()
    with tempfile.TemporaryDirectory() as base:
        os.environ |= {"USAGE_LOCAL_DIR": base, "USAGE_WEBHOOK_PRIVATE_TARGETS": "true", "USAGE_BILLING_SECONDS": "5"}
        settings = Settings()
        try:
            key = stack.up(settings).admin_key
            assert key is not None, "a stack of its own has a new key"
            address = f"http://{settings.http_host}:{settings.http_port}"
            with (
                httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30) as http,
                UsageClient(address, key) as producer,
                browser() as chromium,
            ):
                sample = Sample(http, producer, ZonedDateTime.now("UTC"))
                sample.make(hooks)
                flow = threading.Thread(target=sample.flow, args=(ended,))
                flow.start()
                try:
                    page = chromium.new_context(reduced_motion="reduce").new_page()
                    take(page, address, SIGN_IN, directory)
                    sign_in(page, address, key)
                    take(page, address, PAGES | pages_of_objects(http), directory)
                finally:
                    ended.set()
                    flow.join()
        finally:
            stack.down(settings)
            hooks.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
