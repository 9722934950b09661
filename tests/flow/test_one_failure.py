"""One record, invoice or customer that can't be handled is set aside with its reason; the others are billed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import billing_job.invoice.builder
from billing_job.collect.poller import Poller
from billing_job.invoice.pricing import fixed_invoice
from billing_job.invoice.usage_reader import Need, UsageReader
from schemas.customer import Customer
from schemas.meter import Aggregation, Meter
from schemas.organization import Organization
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark
from tests.flow.billing import APRIL, MARCH, BillingWorld
from warehouse.client import TooMuch

pytestmark = pytest.mark.timeout(300)
FLAT: dict[str, Any] = {"model": "flat_fee", "amount": "5.00"}


def with_another_organization(world: BillingWorld, name: str, **settings: Any) -> None:
    """An organization with one customer, who owes 5.00 a month from March to April."""
    of: dict[str, Any] = {"organization_id": name, "created_at": 0}
    world.catalog.write(Organization.model_construct(id=name, **of, grace_seconds=0, **settings), 0)
    world.catalog.write(
        Meter(id="mtr_calls", name="calls", event_name="calls", unit="1", aggregation=Aggregation.SUM, **of), 0
    )
    world.catalog.write(
        Product.model_validate({"id": "prod", "name": "flat", "currency": "eur", "prices": [FLAT], **of}), 0
    )
    world.catalog.write(Customer(id="theirs", name="theirs", payment_method="pm_card_visa", **of), 0)
    subscription = {
        "id": f"sub_{name}",
        "customer_id": "theirs",
        "product_id": "prod",
        "started_at": MARCH,
        "ends_at": APRIL,
        "billing_interval": "month",
        "collection_method": "charge_automatically",
        "time_zone": "UTC",
    }
    world.catalog.write(Subscription.model_validate({**subscription, **of}), 0)


def test_an_account_that_no_header_can_carry_stops_no_other_customer(world: BillingWorld) -> None:
    with_another_organization(world, "hidden", stripe_account_id="acct_1\u200b")
    world.subscribe("seen", FLAT, ends_at=APRIL)
    report = world.close()
    (invoice,) = world.invoices("seen")
    assert invoice.state == "paid"
    theirs = [each for each in world.context.log.state.invoices.values() if each.organization_id == "hidden"]
    assert [each.state for each in theirs] == ["computed"]
    assert "is no id of a Stripe account" in (theirs[0].reason or "")
    assert list(report.problems) == [theirs[0].id]
    # And again: a close by hand tries again, and the invoice keeps its reason.
    world.close()
    again = world.context.log.state.invoices[theirs[0].id]
    assert (again.state, again.reason) == (theirs[0].state, theirs[0].reason)


def test_a_cycle_that_can_not_be_computed_waits_alone(world: BillingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(due: Any, **more: Any) -> Any:
        if due.customer_id == "odd":
            raise ArithmeticError("no number comes of this")
        return fixed_invoice(due, **more)

    for customer in ("even-1", "odd", "even-2"):
        world.subscribe(customer, FLAT, ends_at=APRIL)
    with monkeypatch.context() as patched:
        patched.setattr(billing_job.invoice.builder, "fixed_invoice", failing)
        report = world.close()
    assert [world.invoices(each)[0].state for each in ("even-1", "odd", "even-2")] == ["paid", "waiting", "paid"]
    (odd,) = world.invoices("odd")
    assert odd.held_by == "not_computed"
    assert report.problems[odd.id] == "ArithmeticError: no number comes of this"
    world.close()
    assert [each.state for each in world.invoices("odd")] == ["paid"]


def test_a_customer_too_large_to_be_counted_stops_no_gate(world: BillingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the server's memory does not suffice for one."""

    def refusing(self: UsageReader, needs: Sequence[Need], watermark: Watermark) -> Any:
        if any(need.customer_id == "huge" for need in needs):
            raise TooMuch("Code: 241. Memory limit exceeded")
        return counted(self, needs, watermark)

    counted = UsageReader.independent_totals
    for customer in ("tiny", "huge"):
        world.subscribe(customer, ends_at=APRIL)
        world.use(customer, "150000")
    with monkeypatch.context() as patched:
        patched.setattr(UsageReader, "independent_totals", refusing)
        report = world.close()
    assert world.invoices("tiny")[0].state == "paid"
    (huge,) = world.invoices("huge")
    assert (huge.state, report.problems[huge.id]) == ("computed", "TooMuch: Code: 241. Memory limit exceeded")
    assert world.stripe_invoices("huge") == []
    world.close()
    assert world.invoices("huge")[0].state == "paid"


def test_what_fails_for_one_open_invoice_ends_no_sweep(world: BillingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for customer in ("left", "right"):
        world.subscribe(customer, FLAT, ends_at=APRIL, payment_method="pm_card_chargeCustomerFail")
    world.close()
    found = {customer: world.stripe_invoices(customer)[0]["id"] for customer in ("left", "right")}
    for stripe_id in found.values():
        world.at_stripe("POST", f"/v1/invoices/{stripe_id}/pay", paid_out_of_band="true")
    read = type(world.context.api).invoice

    def odd(api: Any, invoice_id: str, account: str | None) -> Any:
        return {} if invoice_id == found["left"] else read(api, invoice_id, account)

    with monkeypatch.context() as patched:
        patched.setattr(type(world.context.api), "invoice", odd)
        Poller(world.context.billing(), 0.0).run()
    assert world.invoices("right")[0].state == "paid"
    assert world.invoices("left")[0].state == "payment_failed"
