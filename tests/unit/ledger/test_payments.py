"""The fold of what pays an invoice: debits under way, retries, corrected settings, customers at one Stripe and another."""

from __future__ import annotations

from typing import Any

import pytest

from ledger.benefits import unpaid
from ledger.invoice import Invoice, may_pay_again
from ledger.records import LedgerRecord, Phase, StripeCustomer, decode
from ledger.snapshot import Seller, canonical_hash
from tests.unit.ledger.test_view import DRAFTED, FINALIZED, ID, fixed, folded, seen, step

ATTEMPTED: dict[str, Any] = {"attempted": True, "attempt_count": 1}
PROCESSING = seen("open", processing=True, **ATTEMPTED)
REFUSED = seen("open", payment_error="card_declined: no", **ATTEMPTED)


def after(*records: LedgerRecord) -> Invoice:
    ledger, _ = folded(*records)
    found = ledger.get(ID)
    assert found is not None
    return found


def paying(phase: Phase = "done", **more: Any) -> tuple[LedgerRecord, ...]:
    return (*FINALIZED, step("pay", "intent"), step("pay", phase, **more))


def test_a_payment_under_way_is_open_and_owes_nothing_yet() -> None:
    invoice = after(*paying(code="payment_processing", reason="payment_processing", stripe=PROCESSING))
    assert (invoice.state, invoice.reason, unpaid(invoice)) == ("open", "payment_processing", None)
    assert not may_pay_again(invoice)


@pytest.mark.parametrize(
    ("news", "state", "reason"),
    [
        (seen("paid", seen_at=2, **ATTEMPTED), "paid", None),
        (seen("open", seen_at=2, payment_error="x: no", **ATTEMPTED), "payment_failed", "x: no"),
    ],
)
def test_what_the_bank_answers_is_what_counts(news: Any, state: str, reason: str | None) -> None:
    under_way = paying(code="payment_processing", reason="payment_processing", stripe=PROCESSING)
    invoice = after(*under_way, step("observe", "done", stripe=news, reason=news.payment_error))
    assert (invoice.state, invoice.reason) == (state, reason)
    assert (unpaid(invoice) is not None) is (state == "payment_failed")


def test_a_payment_that_somebody_began_at_stripe_is_under_way_too() -> None:
    invoice = after(*paying(code="no_payment_method", reason="no card", stripe=seen("open")))
    assert (invoice.state, may_pay_again(invoice)) == ("open", True)
    begun = (*paying(code="no_payment_method", reason="no card", stripe=seen("open")),)
    invoice = after(*begun, step("observe", "done", stripe=seen("open", processing=True, seen_at=2, **ATTEMPTED)))
    assert (invoice.state, invoice.reason) == ("open", "payment_processing")


def test_a_retry_lets_a_refused_payment_be_tried_once_more() -> None:
    refused = paying(code="card_declined", reason="no", stripe=REFUSED)
    ledger, _ = folded(*refused)
    second = step("pay", "intent", attempt=2)
    assert not ledger.apply(second), "nobody has asked"
    assert ledger.apply(step("retry", "done", at=5))
    assert ledger.apply(second)
    invoice = ledger.get(ID)
    assert invoice is not None
    assert (invoice.state, unpaid(invoice)) == ("payment_failed", None), "it is being tried"
    ledger.apply(step("retry", "done", at=6))
    assert not ledger.apply(step("pay", "intent", attempt=3)), "one is under way"


def test_a_retry_lets_an_uncollectible_invoice_be_tried_once_more() -> None:
    """Stripe lets it be paid or voided."""
    ledger, _ = folded(*paying(code="card_declined", reason="no", stripe=seen("uncollectible", **ATTEMPTED)))
    second = step("pay", "intent", attempt=2)
    assert not ledger.apply(second), "nobody has asked"
    assert ledger.apply(step("retry", "done", at=5))
    assert ledger.apply(second)
    invoice = ledger.get(ID)
    assert invoice is not None
    assert (invoice.state, unpaid(invoice) is not None) == ("uncollectible", True)


@pytest.mark.parametrize(
    "state", [PROCESSING, seen("uncollectible", processing=True, **ATTEMPTED), seen("paid", **ATTEMPTED)]
)
def test_a_retry_begins_no_second_payment(state: Any) -> None:
    ledger, _ = folded(*paying(stripe=state))
    ledger.apply(step("retry", "done", at=5))
    assert not ledger.apply(step("pay", "intent", attempt=2))


OTHER = Seller("charge_automatically", stripe_account_id="acct_2")


def test_a_corrected_setting_is_in_force_until_a_draft_was_begun() -> None:
    invoice = after(fixed(), step("seller", "done", seller=OTHER, at=7))
    assert invoice.fixed is not None
    assert (invoice.fixed.seller, invoice.fixed.lines, invoice.retry_asked_at) == (OTHER, fixed().lines, 7)
    assert invoice.fixed.hash == canonical_hash(invoice.fixed)
    for begun in ((fixed(), step("draft", "intent")), DRAFTED):
        ledger, _ = folded(*begun)
        assert not ledger.apply(step("seller", "done", seller=OTHER))
    ledger, _ = folded(fixed(), step("draft", "intent"), step("draft", "failed", code="resource_missing"))
    assert ledger.apply(step("seller", "done", seller=OTHER))


def test_why_there_is_no_customer_stands_on_the_invoice_until_there_is_a_draft() -> None:
    why = step("customer", "failed", code="tax_id_invalid", reason="tax_id_invalid: no")
    invoice = after(fixed(), why)
    assert (invoice.state, invoice.reason) == ("computed", "tax_id_invalid: no")
    invoice = after(fixed(), why, *DRAFTED[1:])
    assert (invoice.state, invoice.reason, invoice.attempt("customer")) == ("draft", None, None)
    ledger, _ = folded(*DRAFTED)
    assert not ledger.apply(why)


def link(stripe_customer_id: str | None, phase: Phase = "done", **more: Any) -> StripeCustomer:
    return StripeCustomer("default", "c", phase, 1, stripe_customer_id=stripe_customer_id, **more)


# fmt: off
LINKS: list[tuple[list[StripeCustomer], str | None]] = [
    ([link("cus_1"), link("cus_2")],                                             "cus_1"),  # the first is in force
    ([link("cus_1"), link("cus_2", replaces="cus_1")],                           "cus_2"),
    ([link("cus_1"), link("cus_2", replaces="cus_9")],                           "cus_1"),  # another writer was first
    ([link("cus_1"), link("cus_1", "failed")],                                   None),     # gone at Stripe
    ([link("cus_1"), link("cus_9", "failed")],                                   "cus_1"),
    ([link("cus_1"), link("cus_1", "failed"), link("cus_2", attempt=2)],         "cus_2"),
]
# fmt: on


@pytest.mark.parametrize(("records", "in_force"), LINKS)
def test_a_link_is_replaced_by_whoever_knows_it(records: list[StripeCustomer], in_force: str | None) -> None:
    ledger, _ = folded(*records)
    state = ledger.customer("default", "c")
    assert state is not None
    assert state.stripe_customer_id == in_force


def test_an_id_belongs_to_one_stripe() -> None:
    ledger, applied = folded(link("cus_1"), link("cus_2", owner="acct_a:test"), link("cus_3", owner="acct_a:live"))
    assert applied == [True, True, True]
    found = {owner: ledger.link("default", "c", None, owner) for owner in (None, "acct_a:test", "acct_a:live")}
    assert [each.stripe_customer_id for each in found.values() if each] == ["cus_1", "cus_2", "cus_3"]
    assert ledger.link("default", "c", None, "acct_b:test") is None
    assert [each.stripe_customer_id for each in ledger.links("default", "c", None)] == ["cus_1", "cus_2", "cus_3"]


def test_records_written_before_are_still_read() -> None:
    old = b'{"kind":"stripe_customer","organization_id":"default","customer_id":"c","phase":"done","at":1,'
    record = decode(old + b'"stripe_customer_id":"cus_1"}')
    assert record == link("cus_1")
