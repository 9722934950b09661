"""Thousands of subscriptions → `close` against the stand-in: all paid or failed as their cards say; a re-run is idle.

    python -m tests.benchmarks.close_many [SUBSCRIPTIONS]

A test does the same with a few.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from billing_job.close import CloseReport, close_cycles
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.product import Product
from schemas.subscription import Subscription
from tests.flow.billing import APRIL, MARCH, BillingWorld

CARDS = ("pm_card_visa", "pm_card_mastercard", "pm_card_chargeCustomerFail", "pm_card_visa", None)
"""In turn: paid, paid, payment_failed, paid, open."""
STATES = ("paid", "paid", "payment_failed", "paid", "open")
_AMOUNT = "4.20"


def configure(world: BillingWorld, count: int) -> None:
    """count customers with a subscription of their own each, and one event each, all to one product."""
    own = {"organization_id": DEFAULT_ORGANIZATION, "created_at": 0}
    price = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": _AMOUNT}
    product = {"id": "prod_many", "name": "many", "currency": "eur", "prices": [price]}
    world.catalog.write(Product.model_validate({**own, **product}), 0)

    def one(number: int) -> None:
        name = f"many_{number}"
        customer = {**own, "id": name, "name": name, "payment_method": CARDS[number % len(CARDS)]}
        subscription = {
            **own,
            "id": f"sub_{name}",
            "customer_id": name,
            "product_id": "prod_many",
            "started_at": MARCH,
            "ends_at": APRIL,
            "billing_interval": "month",
            "collection_method": "charge_automatically",
            "time_zone": "UTC",
        }
        world.catalog.write(Customer.model_validate(customer), 0)
        world.catalog.write(Subscription.model_validate(subscription), 0)
        world.use(name, "1")

    with ThreadPoolExecutor(32) as pool:
        for _ in pool.map(one, range(count)):
            pass


def check(world: BillingWorld, count: int) -> None:
    """Each is paid or failed as its card says, once; and nothing is left to do."""
    ledger = world.context.log.state
    charges = world.stripe.charges()
    states = {invoice.customer_id: invoice for invoice in ledger.invoices.values()}
    assert len(states) == len(ledger.invoices) == count
    for number in range(count):
        invoice = states[f"many_{number}"]
        assert invoice.state == STATES[number % len(STATES)], (invoice.customer_id, invoice.state, invoice.reason)
        paid = invoice.state == "paid"
        assert (invoice.order is not None) is paid
        charged = charges.get(invoice.stripe_invoice_id or "", {"succeeded": 0, "amount": 0})
        assert (charged["succeeded"], charged["amount"]) == ((1, 420) if paid else (0, 0))
    world.stripe.control("DELETE", "requests")  # its log is bounded
    size = world.ledger_size()
    assert world.close().ok
    assert world.changes() == 0
    assert world.ledger_size() == size


def close_stopped(world: BillingWorld, charges: int) -> CloseReport:
    """A close that is stopped when so many have been charged: another goes on from there."""
    stopping, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if len(world.stripe.charges()) >= charges:
                stopping.set()
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return close_cycles(world.context, APRIL, stopping=stopping)
    finally:
        over.set()
        watching.join()


@contextmanager
def opened() -> Generator[BillingWorld]:
    """Broker, engine, stand-in and sink of this run alone."""
    directory = Path(tempfile.mkdtemp(prefix="close_many_"))
    ports = free_ports(3)
    kafka = KafkaBroker(directory / "kafka", ports[0], ports[1], directory / "kafka.log")
    engine = ClickHouseLocal(directory / "clickhouse", ports[2], directory / "clickhouse.log")
    kafka.start()
    engine.start()
    try:
        with BillingWorld(kafka, engine, directory) as world:
            yield world
    finally:
        engine.stop()
        kafka.stop()


def main(count: int) -> int:
    with opened() as world:
        configure(world, count)
        started = time.monotonic()
        report = close_cycles(world.context, APRIL)
        spent = time.monotonic() - started
        assert report.ok, next(iter(report.problems.values()), report.waiting)
        print(f"{count} closed in {spent:.1f} s: {report.by_state}")
        check(world, count)
        print("each is as its card says; a re-run changed nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
