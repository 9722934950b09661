"""`close` on the real broker, engine and sink, and Stripe's stand-in: what is invoiced, charged and recorded."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from billing_job import invoices
from billing_job.due import AsOfInFuture
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from tests.flow.billing import APRIL, MARCH, MAY, TIERS, BillingWorld


@pytest.fixture(scope="module")
def world(
    kafka: KafkaBroker, clickhouse: ClickHouseLocal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BillingWorld]:
    with BillingWorld(kafka, clickhouse, tmp_path_factory.mktemp("billing")) as world:
        yield world


def test_150_000_units_cost_135_euros_at_stripe(world: BillingWorld) -> None:
    world.subscribe("tiers")
    world.use("tiers", "100000", "49999.5", "0.5")
    report = world.close()
    assert report.ok, report
    (invoice,) = world.invoices("tiers")
    assert invoice.fixed is not None
    assert (invoice.state, invoice.fixed.total) == ("paid", "135.00")
    (at_stripe,) = world.stripe_invoices("tiers")
    assert (at_stripe["subtotal"], at_stripe["currency"], at_stripe["status"]) == (13500, "eur", "paid")
    assert at_stripe["metadata"]["usage_hash"] == invoice.fixed.hash
    assert [(line["amount"], line["period"]) for line in at_stripe["lines"]["data"]] == [
        (13500, {"start": MARCH // 10**6, "end": APRIL // 10**6})
    ]
    assert world.stripe.charges()[at_stripe["id"]]["succeeded"] == 1
    assert world.stripe.charges()[at_stripe["id"]]["amount"] == 13500
    assert invoice.order is not None
    assert invoice.order.amount_paid == "135.00"
