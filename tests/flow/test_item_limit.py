"""Invoices of more lines than Stripe takes items: each is charged whole, and the ledger keeps every line."""

from __future__ import annotations

import pytest

from billing_job.stripe import line_groups
from schemas.period import SECOND_US, parse_rfc3339
from tests.flow.billing import BillingWorld

pytestmark = pytest.mark.timeout(300)
DAY = 86_400 * SECOND_US
JANUARY = parse_rfc3339("2025-01-01T00:00:00Z")
CENT_A_UNIT = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "0.01"}
EVERY_LINE = 10**6
"""As a limit: what code before the limit sent."""


def days(world: BillingWorld, customer: str, *values: str) -> None:
    """Usage of the customer's first days, a value a day."""
    for day, value in enumerate(values):
        world.use(customer, value, at=JANUARY + day * DAY + 1)


def late_days(world: BillingWorld, customer: str, count: int, value: str, before: str = "0") -> int:
    """A customer by day, whose `count` first days get late usage once they are billed. The next day's end."""
    end = JANUARY + (count + 2) * DAY
    world.subscribe(customer, CENT_A_UNIT, started_at=JANUARY, billing_interval="day", ends_at=end)
    if before != "0":
        days(world, customer, *[before] * count)
    assert world.close(end - DAY).ok
    days(world, customer, *[value] * count)
    return end


def assert_charged(world: BillingWorld, customer: str, total: str, lines: int, items: int) -> None:
    invoice = world.invoices(customer)[-1]
    assert (invoice.state, invoice.document()["total"]) == ("paid", total)
    assert len(invoice.document()["lines"]) == lines
    (at_stripe,) = [each for each in world.stripe_invoices(customer) if each["id"] == invoice.stripe_invoice_id]
    assert (at_stripe["status"], len(world.context.api.items_of(at_stripe["id"], None))) == ("paid", items)
    found = world.service.verify(invoice.id)
    assert found.ok, found.differences


def test_260_late_days_are_one_invoice_that_is_paid(world: BillingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    end = late_days(world, "days", 260, "1000")
    with monkeypatch.context() as before:
        before.setattr(line_groups, "ITEMS_MAX", EVERY_LINE)
        report = world.close(end)
        assert [reason for reason in report.problems.values() if "250" in reason]
        (draft,) = world.stripe_invoices("days")
        assert (draft["status"], len(world.context.api.items_of(draft["id"], None))) == ("draft", 250)
    assert world.close(end).ok
    assert_charged(world, "days", "2600.00", lines=261, items=131)
    assert len(world.stripe_invoices("days")) == 1, "the draft of 250 items was deleted"


@pytest.mark.usefixtures("faults_end")
@pytest.mark.parametrize("step", ["/v1/invoiceitems", "/v1/invoices/*/finalize"])
def test_a_retry_completes_the_same_items(world: BillingWorld, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(line_groups, "ITEMS_MAX", 4)
    customer = f"retried_{step.rpartition('/')[2]}"
    end = late_days(world, customer, 8, "1000")
    world.stripe.fault("error", "POST", step, message="not now", status=400, skip=0 if "final" in step else 2)
    assert not world.close(end).ok
    (draft,) = world.stripe_invoices(customer)
    assert world.close(end).ok
    assert world.invoices(customer)[-1].stripe_invoice_id == draft["id"]
    assert_charged(world, customer, "80.00", lines=9, items=4)


@pytest.mark.usefixtures("faults_end")
def test_a_draft_begun_with_an_item_a_line_is_made_again(world: BillingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_groups, "ITEMS_MAX", EVERY_LINE)
    end = late_days(world, "begun", 8, "1000")
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize", message="not now", status=400)
    assert not world.close(end).ok
    monkeypatch.setattr(line_groups, "ITEMS_MAX", 4)
    assert world.close(end).ok
    assert_charged(world, "begun", "80.00", lines=9, items=4)


def test_late_credits_share_items_too(world: BillingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_groups, "ITEMS_MAX", 4)
    end = late_days(world, "credits", 8, "-400", before="1000")
    assert world.close(end).ok
    assert_charged(world, "credits", "-32.00", lines=9, items=4)
