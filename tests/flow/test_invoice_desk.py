"""Invoices looked after: explained down to the event, verified against raw rows, retried, approved."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec
import pytest

from billing_job.collect import void_credit
from billing_job.collect.steps import system_clock
from billing_job.invoice.explain import NoSuchLine
from billing_job.invoice.verify import verify_invoices
from billing_job.service import UnknownInvoice
from ledger.invoice import Invoice
from ledger.records import IDEMPOTENCY_ERROR
from ledger.snapshot import InvoiceFixed
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import SECOND_US
from tests.flow.billing import APRIL, MARCH, MAY, BillingWorld
from warehouse.client import connect

pytestmark = pytest.mark.timeout(300)
PER_UNIT = {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"}


def fixed_of(world: BillingWorld, customer: str) -> InvoiceFixed:
    found = world.invoices(customer)[-1].fixed
    assert found is not None
    return found


def events_csv(world: BillingWorld, invoice_id: str, line: int | None = None) -> list[dict[str, str]]:
    blocks = world.service.line_events(invoice_id, line)
    return list(csv.DictReader(io.StringIO("".join(blocks))))


def change(world: BillingWorld, statement: str) -> None:
    client = connect(world.settings)
    client.command(f"{statement} SETTINGS mutations_sync = 1")
    client.close()


# --- Explain ----------------------------------------------------------------------------------------------------------


def test_the_events_behind_a_line(world: BillingWorld) -> None:
    world.subscribe(
        "told",
        PER_UNIT,
        {"model": "per_unit", "meter_id": "mtr_peak", "unit_amount": "1"},
        {"model": "flat_fee", "amount": "1"},
    )
    world.use("told", "1.5", "2", identities=["c:=cmd()", "c:b"])
    world.use("told", "1.5", identities=["c:b"])  # a duplicate is behind nothing
    world.use("told", "7", event_name="peak")
    world.use("told", "9", at=APRIL)
    assert world.close(APRIL).ok
    first = fixed_of(world, "told")
    rows = events_csv(world, first.invoice_id)
    assert [(row["line"], row["event_name"], row["event_id"], row["value"], row["role"]) for row in rows] == [
        ("0", "calls", "'=cmd()", "1.5", "counted"),
        ("0", "calls", "b", "2", "counted"),
        ("1", "peak", "", "7", "counted"),
    ]
    assert [row["timestamp"] for row in rows] == ["2026-03-01T00:00:00.000001Z"] * 3
    assert len(events_csv(world, first.invoice_id, 1)) == 1
    assert events_csv(world, first.invoice_id, 2) == []
    told = list(world.service.explain_events(first.invoice_id, 0))
    assert told[0] == "mtr_calls: 3.5 units: 3.50 eur"
    assert told[-1].startswith("  2026-03-01T00:00:00.000001Z calls 2 b (epoch 1, partition ")
    with pytest.raises(NoSuchLine):
        list(world.service.explain_events(first.invoice_id, 3))

    world.use("told", "4", identities=["c:late"])
    assert world.close(MAY).ok
    second = fixed_of(world, "told")
    line = next(number for number, line in enumerate(second.lines) if line.corrects)
    rows = events_csv(world, second.invoice_id, line)
    assert [(row["event_id"] or row["value"], row["role"]) for row in rows] == [
        ("'=cmd()", "counted"),
        ("b", "counted"),
        ("late", "late"),
        ("7", "counted"),
    ]
    assert "  15.50 - 11.50 = 4.00" in world.service.explain(second.invoice_id)


# --- Verify -----------------------------------------------------------------------------------------------------------


def test_a_changed_row_is_named(world: BillingWorld) -> None:
    world.subscribe("row_changed", PER_UNIT)
    world.use("row_changed", "1", "2", "3")
    assert world.close(APRIL).ok
    fixed = fixed_of(world, "row_changed")
    assert world.service.verify(fixed.invoice_id).ok
    change(world, "ALTER TABLE usage_events UPDATE value = 20 WHERE customer_id = 'row_changed' AND value = 2")
    found = world.service.verify(fixed.invoice_id)
    assert not found.ok
    assert found.differences[0] == "mtr_calls: 6 invoiced, 24 found (+18)"
    place = world.query("SELECT kafka_partition, kafka_offset FROM usage_events WHERE value = 20")[0]
    assert found.differences[1] == (
        f"row at epoch 1, partition {place[0]}, offset {place[1]}, index 1: value 20 stored, 2 accepted"
    )
    assert "lines.0.quantity: 6 invoiced, 24 recomputed" in found.differences


def test_a_removed_row_is_named(world: BillingWorld) -> None:
    world.subscribe("row_removed", PER_UNIT)
    world.use("row_removed", "1", "2.25", "3")
    assert world.close(APRIL).ok
    fixed = fixed_of(world, "row_removed")
    change(world, "ALTER TABLE usage_events DELETE WHERE customer_id = 'row_removed' AND value = 2.25")
    found = world.service.verify(fixed.invoice_id)
    assert not found.ok
    assert found.differences[1].startswith("row at epoch 1, partition ")
    assert found.differences[1].endswith(", index 1: not stored any more, value 2.25 accepted")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (("product", "prices", 0, "unit_amount"), "lines.0.amount: 6.00 invoiced, 12.00 recomputed"),
        (("lines", 0, "amount_minor"), "lines.0.amount_minor: 601 invoiced, 600 recomputed"),
        (("watermark", "offsets"), "mtr_calls: 6 invoiced, 0 found (-6)"),
        (("seller", "collection_method"), "the record in the ledger is not what its hash says"),
    ],
    ids=["price", "line", "watermark", "seller"],
)
def test_a_changed_snapshot_is_named(world: BillingWorld, path: tuple[Any, ...], told: str) -> None:
    name = f"snapshot_{path[0]}"
    world.subscribe(name, PER_UNIT)
    world.use(name, "1", "2", "3")
    assert world.close(APRIL).ok
    fixed = fixed_of(world, name)
    forged = msgspec.to_builtins(fixed)
    values: dict[str, Any] = {
        "unit_amount": "2",
        "amount_minor": 601,
        "offsets": {},
        "collection_method": "send_invoice",
    }
    at = forged
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = values[path[-1]]
    state = world.context.log.state
    (found,) = verify_invoices(state, [msgspec.convert(forged, InvoiceFixed)], world.context.usage)
    assert not found.ok
    assert told in found.differences, found.differences
    assert "the record in the ledger is not what its hash says" in found.differences
    assert verify_invoices(state, [fixed], world.context.usage)[0].ok


def test_all_are_verified_at_once(world: BillingWorld) -> None:
    """The rows of two were changed above; every other invoice of this file is as it was, corrections included."""
    found = {each.invoice_id: each for each in world.service.verify_all(DEFAULT_ORGANIZATION)}
    changed = {fixed_of(world, name).invoice_id for name in ("row_changed", "row_removed")}
    assert {invoice_id for invoice_id, each in found.items() if not each.ok} == changed
    assert len(found) > 6
    assert world.service.verify_all("another") == []


# --- Retry and approval -----------------------------------------------------------------------------------------------


def test_what_had_failed_for_good_can_be_retried(world: BillingWorld) -> None:
    world.subscribe("stuck", PER_UNIT)
    world.use("stuck", "5")
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize", status=400, type="idempotency_error", message="no")
    assert not world.close(APRIL).ok
    (stuck,) = world.invoices("stuck")
    attempt = stuck.attempt("finalize")
    assert attempt is not None
    assert (attempt.phase, attempt.code) == ("failed", IDEMPOTENCY_ERROR)
    world.stripe.control("DELETE", "faults")
    assert not world.close(APRIL).ok, "it stays stopped until someone looks at it"
    report = world.service.retry([stuck.id], organization_id=DEFAULT_ORGANIZATION, by="test")
    assert report.ok, report.problems
    (stuck,) = world.invoices("stuck")
    assert stuck.state == "paid"
    assert len(world.stripe_invoices("stuck")) == 1


def test_an_invoice_made_anew_can_be_retried_too(world: BillingWorld) -> None:
    world.subscribe("anew", PER_UNIT, payment_method="pm_card_chargeCustomerFail")
    world.use("anew", "5")
    world.close(APRIL)
    billing = world.context.billing()
    void_credit.reissue(billing, void_credit.void(billing, world.invoices("anew")[0], "wrong card"))
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize", status=400, type="idempotency_error", message="no")
    assert not world.close(APRIL).ok
    second = max(world.invoices("anew"), key=lambda each: each.revision)
    assert (second.revision, second.state) == (2, "draft")
    world.stripe.control("DELETE", "faults")
    report = world.service.retry([second.id], organization_id=DEFAULT_ORGANIZATION, by="test")
    assert report.ok, report.problems
    assert max(world.invoices("anew"), key=lambda each: each.revision).state == "payment_failed"


def test_retry_of_all_leaves_what_is_well_alone(world: BillingWorld) -> None:
    before = (world.changes(), world.ledger_size())
    assert world.service.retry([], organization_id=None, by="test").ok
    assert (world.changes(), world.ledger_size()) == before
    with pytest.raises(UnknownInvoice):
        world.service.retry(["inv_nobody"], organization_id=None, by="test")
    known = world.invoices("stuck")[0].id
    with pytest.raises(UnknownInvoice):
        world.service.retry([known], organization_id="another", by="test")


def test_nothing_is_charged_before_it_is_approved(world: BillingWorld) -> None:
    organization = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert organization is not None
    version = world.catalog.view.version(type(organization), organization.id, organization.id)
    world.catalog.write(organization.model_copy(update={"invoice_approval": "manual"}), version)
    try:
        world.subscribe("wanted", PER_UNIT)
        world.subscribe("idle", PER_UNIT)
        world.use("wanted", "5", at=MARCH)
        report = world.close(APRIL)
        assert report.ok
        (invoice,) = world.invoices("wanted")
        assert (invoice.state, report.awaiting_approval) == ("computed", (invoice.id,))
        assert world.stripe_invoices("wanted") == []
        assert world.invoices("idle")[0].state == "paid", "of nothing, nothing is to approve"
        size = world.ledger_size()
        assert world.close(APRIL).awaiting_approval == (invoice.id,)
        assert world.ledger_size() == size

        approved = world.service.approve([], organization_id=DEFAULT_ORGANIZATION, by="test")
        assert [each.id for each in approved] == [invoice.id]
        assert world.service.approve([invoice.id], organization_id=None, by="test") == []
        assert world.close(APRIL).ok
        (invoice,) = world.invoices("wanted")
        assert (invoice.state, len(world.stripe_invoices("wanted"))) == ("paid", 1)
    finally:
        world.catalog.write(organization, version + 1)


def test_what_was_closed_by_hand_and_approved_is_charged_by_the_next_round(world: BillingWorld) -> None:
    """Rounds waited for the history of a new subscription, an hour, though its invoice was fixed and approved."""
    organization = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert organization is not None
    version = world.catalog.view.version(type(organization), organization.id, organization.id)
    world.catalog.write(organization.model_copy(update={"invoice_approval": "manual"}), version)
    try:
        world.subscribe("prompt", PER_UNIT, created_at=system_clock() + 3600 * SECOND_US)
        world.use("prompt", "5", at=MARCH)
        world.close(APRIL)
        (invoice,) = world.invoices("prompt")
        only = {invoice.id}
        assert invoice.state == "computed"
        world.service.approve([invoice.id], organization_id=None, by="test")
        report = world.close(APRIL, scheduled=True, only=lambda due: due.invoice_id in only)
        assert report.ok
        assert world.invoices("prompt")[0].state == "paid"
    finally:
        world.catalog.write(organization, version + 1)


def approved_and_voided(world: BillingWorld, name: str, *voided: str) -> list[Invoice]:
    """Invoices of a customer who used 5 + 3 + 2, whose approved invoice lost these events before it was charged."""
    organization = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert organization is not None
    version = world.catalog.view.version(type(organization), organization.id, organization.id)
    world.catalog.write(organization.model_copy(update={"invoice_approval": "manual"}), version)
    try:
        world.subscribe(name, PER_UNIT, ends_at=APRIL)
        world.use(name, "5", "3", "2", identities=["c:five", "c:three", "c:two"])
        world.close(APRIL)
        (invoice,) = world.invoices(name)
        assert world.service.approve([invoice.id], organization_id=None, by="test")
        if voided:
            world.void(name, *voided)
        assert world.close(APRIL).ok
        return world.invoices(name)
    finally:
        world.catalog.write(organization, version + 1)


def test_usage_that_was_voided_while_its_invoice_waited_is_not_charged(world: BillingWorld) -> None:
    """Approval charged it. The revision is of no more than what was approved, so it needs no other approval."""
    first, second = approved_and_voided(world, "reconsidered", "three")
    assert (first.state, second.state) == ("void", "paid")
    assert [each.document()["total"] for each in (first, second)] == ["10.00", "7.00"]
    assert first.steps["void", 0].by == "billing"
    (charged,) = world.stripe_invoices("reconsidered")
    assert (charged["metadata"]["usage_invoice_id"], charged["amount_paid"]) == (second.id, 700)
    assert world.service.verify(second.id).ok
    with world.service.all_stored() as watermark:
        billed = world.service.audit_cycles(DEFAULT_ORGANIZATION, watermark).document()
        assert [each for each in billed["faults"] if each["customer_id"] == "reconsidered"] == []


def test_an_approved_invoice_whose_usage_is_all_voided_charges_nothing(world: BillingWorld) -> None:
    first, second = approved_and_voided(world, "forgotten", "five", "three", "two")
    assert [(each.state, each.document()["total"]) for each in (first, second)] == [("void", "10.00"), ("paid", "0.00")]
    assert world.stripe_invoices("forgotten") == []


def test_an_approved_invoice_of_which_nothing_was_voided_is_charged_as_it_is(world: BillingWorld) -> None:
    (only,) = approved_and_voided(world, "confirmed")
    assert (only.state, only.document()["amount_paid"]) == ("paid", "10.00")
