"""Usage that comes after its cycle was invoiced: a line, a credit or a final invoice, each event once, all verifiable."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import Any

import pytest

from billing_job.invoice.simulate import NotSimulable
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import Cycle, parse_rfc3339
from schemas.product import PerUnitPrice, ProductSpec
from tests.flow.billing import APRIL, JUNE, MARCH, MAY, TIERS, BillingWorld
from warehouse.client import connect

pytestmark = pytest.mark.timeout(300)
PER_UNIT = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}


def assert_verified(world: BillingWorld, customer: str) -> None:
    for invoice in world.invoices(customer):
        found = world.service.verify(invoice.id)
        assert found.ok, found.differences


def test_late_usage_is_charged_with_the_next_invoice(world: BillingWorld) -> None:
    world.subscribe("late", TIERS, {"model": "flat_fee", "amount": "1"})
    world.use("late", "100000")
    assert world.close(APRIL).ok
    world.use("late", "50000")
    world.use("late", "7", identities=["c:seven"])
    world.use("late", "7", identities=["c:seven"])
    assert world.close(MAY).ok
    assert world.close(JUNE).ok
    assert [invoice.document()["total"] for invoice in world.invoices("late")] == ["111.00", "26.00", "1.00"]
    at_stripe = {each["metadata"]["usage_cycle_start"]: each for each in world.stripe_invoices("late")}
    may = at_stripe["2026-04-01T00:00:00Z"]
    assert [(line["amount"], line["description"], line["period"]["start"]) for line in may["lines"]["data"]] == [
        (2500, "Late usage, 2026-03-01 to 2026-04-01", MARCH // 10**6),
        (100, "Flat fee", APRIL // 10**6),
        (0, "mtr_calls: 0 units", APRIL // 10**6),
    ]
    assert world.stripe.charges()[may["id"]]["amount"] == 2600
    assert_verified(world, "late")
    (correction,) = world.invoices("late")[1].document()["corrections"]
    assert (correction["quantities"], correction["amount"]) == ({"mtr_calls": "150007"}, "25.00")


def test_a_lower_total_is_a_credit_that_the_next_charge_uses(world: BillingWorld) -> None:
    world.subscribe("credit", PER_UNIT)
    world.use("credit", "100")
    assert world.close(APRIL).ok
    world.use("credit", "-30")
    world.use("credit", "50", at=MAY)
    assert world.close(MAY).ok
    (_, april) = world.invoices("credit")
    assert (april.state, april.document()["total"], april.document()["amount_paid"]) == ("paid", "-30.00", "0.00")
    assert april.order is not None
    assert world.close(JUNE).ok
    may = world.invoices("credit")[-1]
    assert (may.state, may.document()["total"], may.document()["amount_paid"]) == ("paid", "50.00", "20.00")
    assert_verified(world, "credit")


def test_an_event_voided_after_its_invoice_is_a_credit(world: BillingWorld) -> None:
    world.subscribe("voided", PER_UNIT)
    world.use("voided", "100", "30", identities=["c:a", "c:b"])
    assert world.close(APRIL).ok
    world.void("voided", "b")
    world.use("voided", "50", "7", at=APRIL, identities=["c:c", "c:d"])
    world.void("voided", "d")
    assert world.close(MAY).ok
    assert world.close(JUNE).ok
    assert [invoice.document()["total"] for invoice in world.invoices("voided")] == ["130.00", "20.00", "0.00"]
    april = world.invoices("voided")[1]
    assert april.document()["corrections"][0]["amount"] == "-30.00"
    blocks = world.service.line_events(april.id, 1)
    rows = list(csv.DictReader(io.StringIO("".join(blocks))))
    assert [(row["event_id"], row["role"]) for row in rows] == [("a", "counted"), ("b", "voided")]
    assert_verified(world, "voided")


def test_an_ended_subscription_gets_one_final_invoice(world: BillingWorld) -> None:
    world.subscribe("gone", PER_UNIT, ends_at=APRIL)
    world.use("gone", "100")
    assert world.close(APRIL).ok
    world.use("gone", "20")
    assert world.close(parse_rfc3339("2026-04-30T23:59:59Z")).ok
    assert len(world.invoices("gone")) == 1
    assert world.close(MAY).ok
    assert [invoice.document()["total"] for invoice in world.invoices("gone")] == ["100.00", "20.00"]
    world.use("gone", "20")
    assert world.close(JUNE).ok
    assert len(world.invoices("gone")) == 2
    assert len(world.stripe_invoices("gone")) == 2
    assert_verified(world, "gone")


def test_policy_ignore_charges_nothing(world: BillingWorld) -> None:
    world.subscribe("ignored", PER_UNIT)
    world.use("ignored", "100")
    assert world.close(APRIL).ok
    organization = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert organization is not None
    version = world.catalog.view.version(type(organization), organization.id, organization.id)
    world.catalog.write(organization.model_copy(update={"late_policy": "ignore"}), version)
    try:
        world.use("ignored", "20")
        assert world.close(MAY).ok
    finally:
        world.catalog.write(organization, version + 1)
    assert [invoice.document()["total"] for invoice in world.invoices("ignored")] == ["100.00", "0.00"]


def test_two_runs_at_once_charge_late_usage_once(world: BillingWorld) -> None:
    for number in range(4):
        world.subscribe(f"raced_{number}", PER_UNIT)
        world.use(f"raced_{number}", "100")
    assert world.close(APRIL).ok
    for number in range(4):
        world.use(f"raced_{number}", "20")
    processes = [world.spawn_close(as_of) for as_of in (MAY, JUNE, JUNE)]
    for process in processes:
        process.wait(120)
    assert world.close(JUNE).ok
    for number in range(4):
        totals = [invoice.document()["total"] for invoice in world.invoices(f"raced_{number}")]
        assert totals == ["100.00", "20.00", "0.00"]
        assert sum(each["subtotal"] for each in world.stripe_invoices(f"raced_{number}")) == 12000


# --- Preview and simulation -------------------------------------------------------------------------------------------


def test_a_preview_shows_what_is_pending(world: BillingWorld) -> None:
    world.subscribe("pending", PER_UNIT, {"model": "flat_fee", "amount": "1"}, {"model": "minimum", "amount": "9"})
    world.use("pending", "100")
    assert world.close(APRIL).ok
    world.use("pending", "20")
    world.use("pending", "3", at=APRIL)
    at = parse_rfc3339("2026-04-10T00:00:00Z")
    shown: list[dict[str, Any]] = []

    def all_there() -> bool:
        shown[:] = world.preview("pending", at)
        # Each of both: a minimum makes the same total of the late ones alone.
        amounts = {line["model"]: line["amount"] for line in shown[0]["lines"]}
        return (amounts["per_unit"], amounts.get("late_usage")) == ("3.00", "20.00")

    world.until(all_there)
    (found,) = shown
    assert (found["id"], found["state"], found["hash"], found["total"]) == (None, "preview", None, "30.00")
    assert [(line["model"], line["amount"]) for line in found["lines"]] == [
        ("per_unit", "3.00"),
        ("minimum", "6.00"),
        ("flat_fee", "1.00"),
        ("late_usage", "20.00"),
    ]
    assert [(each["billed_before"], each["total"]) for each in found["corrections"]] == [("101.00", "121.00")]
    # What was invoiced is shown as it would be now, by itself.
    (march,) = world.preview("pending", MARCH)
    assert (march["total"], march["corrections"]) == ("121.00", [])
    assert world.close(MAY).ok
    assert world.invoices("pending")[-1].document()["lines"] == found["lines"]


def test_a_preview_after_the_end_is_the_final_invoice(world: BillingWorld) -> None:
    world.subscribe("leaving", PER_UNIT, ends_at=APRIL)
    world.use("leaving", "100")
    assert world.close(APRIL).ok
    world.use("leaving", "20")
    at = parse_rfc3339("2026-04-10T00:00:00Z")
    world.until(lambda: world.preview("leaving", at)[0]["total"] == "20.00")
    assert world.preview("leaving", MAY) == []


def test_what_would_another_price_have_charged(world: BillingWorld) -> None:
    world.subscribe("asked", PER_UNIT, ends_at=(APRIL + MAY) // 2)
    world.use("asked", "100")
    world.use("asked", "10", at=APRIL)
    assert world.close(JUNE).ok
    spec = ProductSpec.model_validate(
        {
            "name": "Tiers",
            "currency": "eur",
            "prices": [{**PER_UNIT, "unit_amount": "0.5"}, {"model": "flat_fee", "amount": "30"}],
        }
    )

    def simulated(product: ProductSpec | str) -> list[tuple[str, str, str, str]]:
        found = world.service.simulate(DEFAULT_ORGANIZATION, "asked", product, Cycle(MARCH, JUNE))
        return [(each["cycle"]["start"][:10], each["total"], each["billed"], each["difference"]) for each in found]

    assert simulated(spec) == [
        ("2026-03-01", "80.00", "100.00", "-20.00"),
        ("2026-04-01", "20.00", "10.00", "10.00"),  # half of April's flat fee
    ]
    assert simulated("prod_asked") == [
        ("2026-03-01", "100.00", "100.00", "0.00"),
        ("2026-04-01", "10.00", "10.00", "0.00"),
    ]
    with pytest.raises(NotSimulable):
        simulated("prod_nobody")
    with pytest.raises(NotSimulable):
        simulated(spec.model_copy(update={"prices": (PerUnitPrice(meter_id="mtr_none", unit_amount=Decimal(1)),)}))


# --- Last, since it leaves an invoice that is held ---------------------------------------------------------------------


def test_rows_that_a_store_lost_are_not_credited(world: BillingWorld) -> None:
    """A late event has the cycle counted again; what it was billed by must still be there."""
    world.subscribe("lost", PER_UNIT)
    world.use("lost", "100", "5")
    assert world.close(APRIL).ok
    client = connect(world.settings)
    client.command(
        "ALTER TABLE usage_events DELETE WHERE customer_id = 'lost' AND value = 5 SETTINGS mutations_sync = 1"
    )
    client.close()
    world.use("lost", "1")
    report = world.close(MAY)
    assert not report.ok
    april = world.invoices("lost")[-1]
    assert april.state == "mismatch"
    assert april.reason == ("cycle 2026-03-01T00:00:00Z as it was billed, mtr_calls: 105 invoiced, 100 found (-5)")
    assert len(world.stripe_invoices("lost")) == 1
