"""Benefits follow what Stripe says of one subscription's invoices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ledger.benefits import Unpaid, benefits_state, suspending, unpaid
from ledger.invoice import Attempt
from ledger.records import ACTION_REQUIRED, NO_PAYMENT_METHOD, StripeInvoice
from ledger.snapshot import Seller
from tests.unit.ledger.test_view import DAY_US, FAILED, ID, fixed, folded, seen

NOW = 50 * DAY_US
GRACE = 7 * DAY_US
AUTO, SENT = "charge_automatically", "send_invoice"


def asked(days_ago: int, **facts: Any) -> StripeInvoice:
    return seen("open", finalized_at=NOW - days_ago * DAY_US, **facts)


EXHAUSTED = asked(20, attempted=True, attempt_count=4)


@pytest.mark.parametrize(("facts", "collection", "pay", "ends_at", "state"), [
    (None,                                       AUTO, None,              None,        "active"),
    (seen("draft"),                              AUTO, None,              None,        "active"),
    (seen("open"),                               AUTO, None,              None,        "active"),
    (FAILED,                                     AUTO, "card_declined",   None,        "active"),  # Stripe tries again
    (EXHAUSTED,                                  AUTO, "card_declined",   None,        "suspended"),
    (seen("uncollectible"),                      AUTO, "card_declined",   None,        "suspended"),
    (seen("paid", attempted=True, attempt_count=5), AUTO, "card_declined", None,       "active"),
    (seen("void"),                               AUTO, None,              None,        "active"),
    # What only the customer can put right has a grace, also where retries are still to come.
    (asked(6),                                   AUTO, NO_PAYMENT_METHOD, None,        "active"),
    (asked(7),                                   AUTO, NO_PAYMENT_METHOD, None,        "suspended"),
    (asked(6, attempted=True, attempt_count=1),  AUTO, ACTION_REQUIRED,   None,        "active"),
    (asked(7, attempted=True, attempt_count=1),  AUTO, ACTION_REQUIRED,   None,        "suspended"),
    (EXHAUSTED,                                  AUTO, ACTION_REQUIRED,   None,        "suspended"),
    (asked(1, attempted=True, attempt_count=4),  AUTO, ACTION_REQUIRED,   None,        "suspended"),
    (seen("open", due_date=NOW),                 SENT, None,              None,        "suspended"),
    (seen("open", due_date=NOW + 1),             SENT, None,              None,        "active"),
    (seen("open"),                               SENT, None,              None,        "active"),
    (seen("uncollectible"),                      AUTO, None,              NOW,         "ended"),
    (seen("open"),                               AUTO, None,              NOW + 1,     "active"),
])  # fmt: skip
def test_state(facts: StripeInvoice | None, collection: Any, pay: str | None, ends_at: int | None, state: str) -> None:
    invoice = folded(fixed(seller=Seller(collection)))[0].invoices[ID]
    steps = {("pay", 0): Attempt(1, "done", 0, code=pay)} if pay else {}
    owed = unpaid(replace(invoice, stripe=facts, steps=steps))  # type: ignore[arg-type]
    assert benefits_state([owed] if owed else [], ends_at, NOW, GRACE) == state


def test_the_oldest_invoice_is_the_reason() -> None:
    owed = [Unpaid("overdue", 9), Unpaid("action_required", 1), Unpaid("retries_exhausted", 7), Unpaid("overdue", 99)]
    assert suspending(owed, now_us=20, grace_us=10) == owed[2]
    assert suspending(owed, now_us=6, grace_us=10) is None
