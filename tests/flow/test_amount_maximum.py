"""An invoice above the currency's maximum is held before Stripe hears of it; the others are charged."""

from __future__ import annotations

import pytest

from billing_job.collect.void_credit import void
from tests.flow.billing import APRIL, MAY, BillingWorld

pytestmark = pytest.mark.timeout(300)


def fee(amount: str) -> dict[str, str]:
    return {"model": "flat_fee", "amount": amount}


def test_more_than_stripe_charges_is_held_and_nothing_is_sent(world: BillingWorld) -> None:
    world.subscribe("most", fee("999999.99"))
    world.subscribe("more", fee("1000000.00"))
    world.subscribe("yen", fee("100000000"), currency="jpy")
    report = world.close()
    assert not report.ok
    assert [world.invoices(each)[0].state for each in ("most", "more", "yen")] == ["paid", "mismatch", "mismatch"]
    (held,) = world.invoices("more")
    shown = held.document()
    assert shown["reason_code"] == "amount_above_maximum"
    assert shown["reason"].startswith("the total 1000000.00 eur is above 999999.99")
    assert "void the invoice" in shown["reason"]
    assert (world.invoices("yen")[0].reason or "").startswith("the total 100000000 jpy is above 99999999")
    assert not world.stripe_invoices("more")
    assert not [each for each in world.at_stripe("GET", "/v1/customers", limit="100")["data"] if each["name"] != "most"]

    size, changes = world.ledger_size(), world.changes()
    assert not world.close().ok
    assert (world.ledger_size(), world.changes()) == (size, changes), "the same news was written again"

    world.close(settings={"stripe_amount_digits_max": 9})  # Stripe has raised the merchant's limit
    (charged,) = world.invoices("more")
    assert (charged.state, charged.held_by, charged.document()["amount_paid"]) == ("paid", None, "1000000.00")


def test_an_invoice_that_is_held_stops_no_later_one_and_can_be_void(world: BillingWorld) -> None:
    world.subscribe("later", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"})
    world.use("later", "1000000")
    assert not world.close().ok
    world.close(MAY)
    assert [each.state for each in world.invoices("later")] == ["mismatch", "paid"]
    changes = world.changes()
    void(world.context.billing(), world.invoices("later")[0], "billed in parts")
    assert world.invoices("later")[0].state == "void"
    assert world.changes() == changes


def test_tax_that_takes_a_total_above_the_maximum_holds_it_before_it_is_finalized(world: BillingWorld) -> None:
    rate = world.at_stripe("POST", "/v1/tax_rates", display_name="VAT", percentage="19", inclusive="false")["id"]
    organization = world.catalog.view.organization("default")
    assert organization is not None
    world.catalog.write(organization.model_copy(update={"tax_mode": "rates", "tax_rates": (rate,)}), 1)
    world.subscribe("taxed", fee("900000.00"), ends_at=APRIL, payment_method="pm_sepaDebit_success_de")
    world.subscribe(
        "small", fee("840336.12"), ends_at=APRIL, payment_method="pm_sepaDebit_success_de"
    )  # 999,999.98 with tax
    assert not world.close().ok
    (held,) = world.invoices("taxed")
    assert (held.state, held.held_by) == ("mismatch", "amount_above_maximum")
    assert (held.reason or "").startswith("the total with tax 1071000.00 eur is above 999999.99")
    assert [each["status"] for each in world.stripe_invoices("taxed")] == ["draft"]
    assert world.invoices("small")[0].state == "open"
    size, changes = world.ledger_size(), world.changes()
    world.close()
    assert (world.ledger_size(), world.changes()) == (size, changes), "the same news was written again"

    void(world.context.billing(), held, "billed in parts")
    assert world.invoices("taxed")[0].state == "void"
    assert world.stripe_invoices("taxed") == []
