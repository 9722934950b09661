"""Which cycles are due: a row a case, the expected cycles last."""

from __future__ import annotations

from typing import Any

import pytest

from billing_job.invoice.due import AsOfInFuture, cycle_at, due_cycles, owed_at
from ledger.snapshot import invoice_id
from schemas.period import parse_rfc3339
from schemas.subscription import ProductChange, Subscription

us = parse_rfc3339
DAY = 86_400
NOW = us("2026-07-01T00:00:00Z")


def subscription(**changes: Any) -> Subscription:
    values: dict[str, Any] = {
        "id": "sub_1",
        "organization_id": "default",
        "customer_id": "c",
        "product_id": "prod_1",
        "started_at": us("2026-01-01T00:00:00Z"),
        "billing_interval": "month",
        "collection_method": "charge_automatically",
        "time_zone": "UTC",
        "created_at": us("2026-01-01T00:00:00Z"),
    }
    return Subscription(**{**values, **changes})


def months(found: Any) -> list[str]:
    return [f"{due.cycle.start[:10]} {due.cycle.end[:10]}" for due in found]


JANUARY, FEBRUARY = "2026-01-01 2026-02-01", "2026-02-01 2026-03-01"
# fmt: off
CASES = [
    # as_of                   now                     grace    ends_at                  due                   in grace
    ("2026-01-31T23:59:59Z", "2026-07-01T00:00:00Z", 3600,    None,                    [],                   []),
    ("2026-02-01T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    None,                    [JANUARY],            []),
    ("2026-02-01T00:00:00Z", "2026-02-01T00:59:59Z", 3600,    None,                    [],                   [JANUARY]),
    ("2026-02-01T00:00:00Z", "2026-02-01T01:00:00Z", 3600,    None,                    [JANUARY],            []),
    ("2026-02-01T00:00:00Z", "2026-02-01T00:00:00Z", 0,       None,                    [JANUARY],            []),
    ("2026-03-01T00:00:00Z", "2026-03-01T00:10:00Z", 3600,    None,                    [JANUARY],            [FEBRUARY]),
    ("2026-03-01T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    None,                    [JANUARY, FEBRUARY],  []),
    # Ended within a cycle: what was used so far is billed, from the end on.
    ("2026-01-20T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    "2026-01-20T00:00:00Z",  [JANUARY],            []),
    ("2026-01-19T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    "2026-01-20T00:00:00Z",  [],                   []),
    ("2026-01-20T00:00:00Z", "2026-01-20T00:10:00Z", 3600,    "2026-01-20T00:00:00Z",  [],                   [JANUARY]),
    ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    "2026-01-20T00:00:00Z",  [JANUARY],            []),
    # Ended where a cycle ends: the next one never began.
    ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    "2026-02-01T00:00:00Z",  [JANUARY],            []),
    # Ended before it began.
    ("2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z", 3600,    "2026-01-01T00:00:00Z",  [],                   []),
]
# fmt: on


@pytest.mark.parametrize(("as_of", "now", "grace", "ends_at", "due", "in_grace"), CASES)
def test_cycles_are_due_after_their_grace(
    as_of: str, now: str, grace: int, ends_at: str | None, due: list[str], in_grace: list[str]
) -> None:
    found = due_cycles(
        [subscription(ends_at=None if ends_at is None else us(ends_at))],
        as_of_us=us(as_of),
        now_us=us(now),
        grace_seconds=lambda _: grace,
        trues_up=lambda _: False,
    )
    assert (months(found.due), months(found.in_grace)) == (due, in_grace)


def test_the_future_can_not_be_closed() -> None:
    with pytest.raises(AsOfInFuture, match="2026-07-01T00:00:01Z"):
        due_cycles(
            [subscription()], as_of_us=NOW + 1_000_000, now_us=NOW, grace_seconds=lambda _: 0, trues_up=lambda _: False
        )


@pytest.mark.parametrize(
    ("wait_for_imports", "now", "count"),
    [(True, "2026-06-10T00:59:59Z", 0), (True, "2026-06-10T01:00:00Z", 5), (False, "2026-06-10T00:00:00Z", 5)],
)
def test_a_start_in_the_past_waits_for_its_import(wait_for_imports: bool, now: str, count: int) -> None:
    found = due_cycles(
        [subscription(created_at=us("2026-06-10T00:00:00Z"))],
        as_of_us=us("2026-06-10T00:00:00Z"),
        now_us=us(now),
        grace_seconds=lambda _: 3600,
        trues_up=lambda _: False,
        wait_for_imports=wait_for_imports,
    )
    assert (len(found.due), len(found.in_grace)) == (count, 5 - count)


def test_cycles_follow_the_zone_and_the_anchor() -> None:
    started = us("2013-01-01T00:00:00-05:00")
    found = due_cycles(
        [subscription(started_at=started, time_zone="America/New_York")],
        as_of_us=us("2014-01-01T00:00:00-05:00"),
        now_us=NOW,
        grace_seconds=lambda _: 0,
        trues_up=lambda _: False,
    )
    assert len(found.due) == 12
    assert [due.cycle.start for due in found.due[2:5]] == [
        "2013-03-01T05:00:00Z",
        "2013-04-01T04:00:00Z",
        "2013-05-01T04:00:00Z",
    ]


def test_cycles_before_billed_from_are_not_due() -> None:
    billed = subscription(billed_from=us("2026-03-01T00:00:00Z"))
    asked: dict[str, Any] = {"now_us": NOW, "grace_seconds": lambda _: 0, "trues_up": lambda _: True}
    found = due_cycles([billed], as_of_us=us("2026-05-01T00:00:00Z"), **asked)
    assert months(found.due) == ["2026-03-01 2026-04-01", "2026-04-01 2026-05-01"]
    assert cycle_at(billed, us("2026-02-28T00:00:00Z")) is None
    ended_before = billed.model_copy(update={"ends_at": us("2026-02-10T00:00:00Z")})
    assert due_cycles([ended_before], as_of_us=NOW, **asked).due == ()
    assert cycle_at(ended_before, us("2026-02-11T00:00:00Z")) is None


def test_after_a_cancellation_its_last_cycle_is_owed_until_it_is_invoiced() -> None:
    ended = subscription(ends_at=us("2026-02-10T00:00:00Z"))
    at, invoiced = us("2026-02-10T00:00:01Z"), set[str]()
    owed = owed_at(ended, at, invoiced.__contains__)
    assert owed is not None
    assert (owed.cycle.start, owed.active_until, owed.final) == ("2026-02-01T00:00:00Z", ended.ends_at, False)
    invoiced.add(owed.invoice_id)
    final = owed_at(ended, at, invoiced.__contains__)
    assert final is not None
    assert final.final
    never = subscription(ends_at=us("2026-01-01T00:00:00Z"))
    assert owed_at(never, at, invoiced.__contains__) is None


def test_a_cycle_is_priced_by_the_product_in_force_at_its_start() -> None:
    change = ProductChange(product_id="prod_2", from_us=us("2026-02-01T00:00:00Z"))
    found = due_cycles(
        [subscription(changes=(change,))],
        as_of_us=us("2026-03-01T00:00:00Z"),
        now_us=NOW,
        grace_seconds=lambda _: 0,
        trues_up=lambda _: False,
    )
    assert [due.product_id for due in found.due] == ["prod_1", "prod_2"]


def test_the_invoice_is_named_by_subscription_and_cycle() -> None:
    (due,) = due_cycles(
        [subscription()],
        as_of_us=us("2026-02-01T00:00:00Z"),
        now_us=NOW,
        grace_seconds=lambda _: 0,
        trues_up=lambda _: False,
    ).due
    assert due.invoice_id == invoice_id("default", "sub_1", us("2026-01-01T00:00:00Z"))


def test_each_organization_has_its_grace() -> None:
    both = [subscription(), subscription(id="sub_2", organization_id="org_2")]
    found = due_cycles(
        both,
        as_of_us=us("2026-02-01T00:00:00Z"),
        now_us=us("2026-02-01T02:00:00Z"),
        grace_seconds=lambda organization: 3600 if organization == "default" else 7200 + 1,
        trues_up=lambda _: False,
    )
    assert [due.organization_id for due in found.due] == ["default"]
    assert [due.organization_id for due in found.in_grace] == ["org_2"]


@pytest.mark.parametrize(
    ("now", "ends_at", "cycle"),
    [
        ("2025-12-31T23:59:59Z", None, None),
        ("2026-01-01T00:00:00Z", None, JANUARY),
        ("2026-02-01T00:00:00Z", None, FEBRUARY),
        ("2026-02-10T00:00:00Z", "2026-02-20T00:00:00Z", FEBRUARY),
        ("2026-02-20T00:00:00Z", "2026-02-20T00:00:00Z", "2026-02-20 2026-03-22"),  # of the final invoice
        ("2026-03-22T00:00:00Z", "2026-02-20T00:00:00Z", None),
    ],
)
def test_the_cycle_at_is_the_one_that_runs(now: str, ends_at: str | None, cycle: str | None) -> None:
    found = cycle_at(subscription(ends_at=None if ends_at is None else us(ends_at)), us(now))
    assert (months([found])[0] if found else None) == cycle
    if found and ends_at and not found.final:
        assert found.active_until == us(ends_at)
