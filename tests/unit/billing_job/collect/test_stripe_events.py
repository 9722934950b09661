"""Which events are news of ours, by what they name alone."""

from __future__ import annotations

from typing import Any

import pytest

from billing_job.collect.poller import rest_seconds
from billing_job.collect.stripe_events import OF_AN_ADJUSTMENT, OF_AN_INVOICE, Hint, hint_of

THING = {"id": "in_1"}


def event(kind: Any, thing: Any = THING, **more: Any) -> dict[str, Any]:
    return {"type": kind, "data": {"object": thing}, **more}


@pytest.mark.parametrize(("told", "hint"), [
    (event("invoice.paid"),                             Hint("invoice.paid", THING, None)),
    (event("invoice.paid", account="acct_1"),           Hint("invoice.paid", THING, "acct_1")),
    (event("invoice.paid", account=7),                  Hint("invoice.paid", THING, None)),
    (event("refund.failed", {"id": "re_1"}),            Hint("refund.failed", {"id": "re_1"}, None)),
    (event("invoice.of_a_later_version"),               None),
    (event("customer.created"),                         None),
    (event("invoice.paid", {}),                         None),
    (event("invoice.paid", {"id": 7}),                  None),
    (event("invoice.paid", []),                         None),
    (event(["invoice.paid"]),                           None),
    ({"type": "invoice.paid"},                          None),
    ({"type": "invoice.paid", "data": []},              None),
    ({},                                                None),
])  # fmt: skip
def test_hints(told: dict[str, Any], hint: Hint | None) -> None:
    assert hint_of(told) == hint


def test_a_list_of_events_takes_the_types_of_adjustments_at_once() -> None:
    """Source: Stripe, "List all events": an array of up to 20 strings."""
    assert len(OF_AN_ADJUSTMENT) <= 20
    assert not set(OF_AN_INVOICE) & set(OF_AN_ADJUSTMENT)


@pytest.mark.parametrize(
    ("in_vain", "every", "seconds"),
    [(0, 900, 15), (1, 900, 30), (5, 900, 480), (6, 900, 900), (999, 900, 900), (0, 0, 0)],
)
def test_an_invoice_is_read_ever_less_often(in_vain: int, every: float, seconds: float) -> None:
    assert rest_seconds(in_vain, every) == seconds
