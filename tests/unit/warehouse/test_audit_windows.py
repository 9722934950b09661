"""When an event is billed, late, held or not due: by invoices and subscriptions, whatever an event's place in the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from schemas.partition import partition_of
from schemas.subscription import FOR_EVER, ProductChange, Subscription
from schemas.watermark import Watermark
from warehouse.audit import audited
from warehouse.audit_windows import (
    AuditedInvoice,
    AuditedSubscription,
    EventClass,
    Window,
    order_of,
    windows,
)

PARTITIONS = 3
HOME = partition_of("o", "c", PARTITIONS)
NAMES = {("o", "p"): ["calls", "calls"], ("o", "q"): ["bytes"]}
SUBSCRIPTION = AuditedSubscription("o", "c", "s", ((0, FOR_EVER, "p"),))


def below(offset: int) -> Watermark:
    return Watermark(1, {HOME: offset})


def invoice(cycle: int, offset: int | None, state: str = "paid", *, trued_up: bool = False) -> AuditedInvoice:
    watermark = None if offset is None else below(offset)
    names = ("calls",) if watermark else ()
    return AuditedInvoice("o", "c", "s", state, cycle * 10, cycle * 10 + 10, names, watermark, trued_up)


def class_of(at: int, offset: int, found: Sequence[Window], name: str = "calls") -> EventClass:
    """As the query does it: the least of what the windows say."""
    order = order_of(below(offset), HOME)
    said = [
        each.class_billed
        if order < each.billed_below
        else EventClass.TRUED_UP
        if order < each.trued_below
        else each.class_late
        for each in found
        if each.event_name == name and each.start_us <= at < each.end_us
    ]
    return min(said, default=EventClass.UNPRICED)


# invoices, time, offset → class; cycles are 10 µs long
CASES: list[tuple[str, list[AuditedInvoice], int, int, EventClass]] = [
    ("no invoice yet",          [],                                                        5, 0, EventClass.NOT_DUE),
    ("on the invoice",          [invoice(0, 3)],                                           5, 2, EventClass.BILLED),
    ("at the watermark",        [invoice(0, 3)],                                           5, 3, EventClass.PENDING_LATE),
    ("of the open cycle",       [invoice(0, 3)],                                          10, 0, EventClass.NOT_DUE),
    ("trued up later",          [invoice(0, 3), invoice(1, 6, trued_up=True)],             5, 5, EventClass.TRUED_UP),
    ("after the true-up",       [invoice(0, 3), invoice(1, 6, trued_up=True)],             5, 6, EventClass.PENDING_LATE),
    ("a later one trues none",  [invoice(0, 3), invoice(1, 6)],                            5, 5, EventClass.PENDING_LATE),
    ("trued up twice",          [invoice(0, 3), invoice(1, 6, trued_up=True), invoice(2, 9, trued_up=True)], 5, 8, EventClass.TRUED_UP),
    ("an earlier one trues no later", [invoice(0, 9, trued_up=True), invoice(1, 3)],      15, 5, EventClass.PENDING_LATE),
    ("waiting",                 [invoice(0, None, "waiting")],                             5, 0, EventClass.HELD),
    ("mismatch",                [invoice(0, 3, "mismatch")],                               5, 2, EventClass.HELD),
    ("late for a mismatch",     [invoice(0, 3, "mismatch")],                               5, 3, EventClass.PENDING_LATE),
    ("void",                    [invoice(0, 3, "void")],                                   5, 2, EventClass.HELD),
    ("nothing is late for void", [invoice(0, 3, "void")],                                  5, 3, EventClass.HELD),
    ("void and issued again",   [invoice(0, 3, "void"), invoice(0, 5)],                    5, 4, EventClass.BILLED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("invoices", "at", "offset", "expected"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_class(invoices: list[AuditedInvoice], at: int, offset: int, expected: EventClass) -> None:
    found = list(windows(invoices, [SUBSCRIPTION], NAMES, frozenset(), PARTITIONS))
    assert class_of(at, offset, found) is expected
    if expected is EventClass.PENDING_LATE:
        found = list(windows(invoices, [SUBSCRIPTION], NAMES, frozenset({"o"}), PARTITIONS))
        assert class_of(at, offset, found) is EventClass.IGNORED_LATE


def test_what_no_product_prices_has_no_window() -> None:
    changed = replace(SUBSCRIPTION, spans=((0, 20, "p"), (20, 40, "q")))
    found = list(windows([], [changed], NAMES, frozenset(), PARTITIONS))
    assert [class_of(at, 0, found) for at in (19, 20, 40)] == [
        EventClass.NOT_DUE, EventClass.UNPRICED, EventClass.UNPRICED,
    ]  # fmt: skip
    assert class_of(20, 0, found, "bytes") is EventClass.NOT_DUE


def test_spans_are_of_the_products_in_force() -> None:
    subscription = Subscription(
        id="s", organization_id="o", customer_id="c", product_id="p", started_at=10, ends_at=50, billing_interval="day",
        collection_method="charge_automatically", time_zone="UTC", created_at=0,
        changes=(ProductChange(product_id="q", from_us=30), ProductChange(product_id="r", from_us=60)),
    )  # fmt: skip
    assert audited(subscription).spans == ((10, 30, "p"), (30, 50, "q"))
    assert audited(subscription.model_copy(update={"ends_at": None})).spans[-1] == (60, FOR_EVER, "r")
