"""The audit on the real engine: balances on any history at any watermark, and names each fault that is planted."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas.partition import partition_of
from schemas.watermark import Watermark
from tests.history import (
    CUSTOMERS,
    Log,
    Sent,
    Void,
    Written,
    fold,
    histories,
    log_of,
    of_organization,
)  # fmt: skip
from tests.sharding import insert_log, insert_row, migrated
from warehouse.audit import Audit, Tally, audit
from warehouse.audit_windows import EventClass
from warehouse.repeats import Repeated, repeated_events
from warehouse.shards import Shards

PARTITIONS = 2
SCALE = Decimal("1e-9")
EVERYTHING = Watermark(2, {0: 10**6, 1: 10**6})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module", params=[1, 2], ids=["one server", "two servers"])
def shards(
    request: pytest.FixtureRequest, clickhouse: ClickHouseLocal, second_clickhouse: ClickHouseLocal
) -> Iterator[Shards]:
    """Of a migrated database of this module."""
    name, engines = f"a{secrets.token_hex(6)}", [clickhouse, second_clickhouse][: request.param]
    with migrated(engines, name, PARTITIONS) as made:
        yield made
        for index in range(made.count):
            made.at(index).command(f"DROP DATABASE {name} SYNC")


@pytest.fixture
def organization() -> str:
    return f"o{secrets.token_hex(6)}"


def on_all(shards: Shards, statement: str, organization: str) -> None:
    """A statement about an organization, o, on every server."""
    for index in range(shards.count):
        shards.at(index).command(statement, parameters={"o": organization})


def placed(organization: str, *messages: Written, epoch: int = 1) -> Log:
    return log_of(
        [(epoch, message) for message in messages], PARTITIONS, lambda c: partition_of(organization, c, PARTITIONS)
    )


def at(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def configure(shards: Shards, organization: str, table: str, id_: str, **columns: Any) -> None:
    """A row of a catalog or ledger table, as the sink projects it."""
    values = {"organization_id": organization, "id": id_, "version": 1, **columns}
    if table == "stored_organizations":
        del values["organization_id"]
    insert_row(shards, table, **values)


def known(
    shards: Shards, organization: str, customers: Sequence[str] = CUSTOMERS, names: Sequence[str] = ("calls",)
) -> None:
    for customer in customers:
        configure(shards, organization, "stored_customers", customer)
    for name in names:
        configure(shards, organization, "stored_meters", f"mtr_{name}", event_name=name, aggregation="sum")
    configure(shards, organization, "stored_products", "prod", meter_ids=[f"mtr_{name}" for name in names])


def subscribe(shards: Shards, organization: str, customer: str, started_at: int, ends_at: int | None = None) -> None:
    ends = "null" if ends_at is None else str(ends_at)
    document = (
        f'{{"id":"sub_{customer}","organization_id":"{organization}","customer_id":"{customer}","product_id":"prod",'
        f'"started_at":{started_at},"ends_at":{ends},"billing_interval":"month","time_zone":"UTC","created_at":0,'
        '"collection_method":"charge_automatically"}'
    )
    configure(shards, organization, "stored_subscriptions", f"sub_{customer}", document=document)


def invoice(
    shards: Shards, organization: str, customer: str, cycle: tuple[int, int], below: dict[str, int], **more: Any
) -> None:
    values = {
        "customer_id": customer, "subscription_id": f"sub_{customer}", "cycle_start": at(cycle[0]), "cycle_end": at(cycle[1]),
        "active_until": at(cycle[1]), "state": "paid", "event_names": ["calls"],
        "watermark": f'{{"epoch":1,"offsets":{{{",".join(f"{chr(34)}{p}{chr(34)}:{o}" for p, o in below.items())}}}}}',
    }  # fmt: skip
    configure(shards, organization, "stored_invoices", f"inv_{cycle[0]}_{customer}", **{**values, **more})


def tally(found: Audit, organization: str) -> dict[EventClass, tuple[int, Decimal]]:
    """Classes with events; none where nothing was accepted."""
    mine = [each.classes for each in found.organizations if each.organization_id == organization]
    return {kind: (each.events, each.value) for classes in mine for kind, each in classes.items() if each.events}


def units(*unscaled: int | None) -> tuple[int, Decimal]:
    return len(unscaled), sum(value or 0 for value in unscaled) * SCALE


# -- it balances -------------------------------------------------------------------------------------------------------


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    histories(), st.one_of(st.none(), st.tuples(st.integers(1, 2), st.integers(0, 4), st.integers(0, 4))), st.booleans()
)
def test_any_history_balances_at_any_watermark(
    shards: Shards, messages: Sequence[tuple[int, Written]], limit: tuple[int, int, int] | None, meter_later: bool
) -> None:
    organization = f"o{secrets.token_hex(6)}"
    home: Callable[[str], int] = lambda customer: partition_of(organization, customer, PARTITIONS)  # noqa: E731
    log = log_of(of_organization(messages, organization), PARTITIONS, home)
    if not meter_later:
        known(shards, organization, CUSTOMERS[:2])
    insert_log(shards, log)
    if meter_later:
        before = audit(shards, EVERYTHING, PARTITIONS, organization)
        assert set(tally(before, organization)) <= {EventClass.UNMATCHED, EventClass.VOIDED, EventClass.DUPLICATE}
        known(shards, organization, CUSTOMERS[:2])
    below = EVERYTHING if limit is None else Watermark(limit[0], {0: limit[1], 1: limit[2]})
    found = audit(shards, below, PARTITIONS, organization)
    assert found.ok, found.faults
    folded = fold(log, below)
    expected: dict[EventClass, list[int | None]] = {}
    for each in folded.duplicates:
        expected.setdefault(EventClass.DUPLICATE, []).append(each.event.unscaled)
    for each in folded.voided:
        expected.setdefault(EventClass.VOIDED, []).append(each.event.unscaled)
    for each in folded.counted:
        matched = each.event.name == "calls" and each.event.customer in CUSTOMERS[:2]
        expected.setdefault(EventClass.UNPRICED if matched else EventClass.UNMATCHED, []).append(each.event.unscaled)
    assert tally(found, organization) == {kind: units(*values) for kind, values in expected.items()}


def test_every_class_of_what_is_priced(shards: Shards, organization: str) -> None:
    """By where an event lies in time and in the log, against what was invoiced when."""
    known(shards, organization, ["a"])
    subscribe(shards, organization, "a", 10, 60)
    one = Sent(organization, "a", "calls", "", 0, 1_000_000_000)
    times = {"before": 5, "first cycle": 15, "second": 25, "held": 35, "waiting": 45, "open": 55, "after": 60}
    first = Written(tuple(replace(one, at=t, unscaled=10**9 * 10**i) for i, t in enumerate(times.values())))
    late = Written((replace(one, at=15, unscaled=3 * 10**9), replace(one, at=25, unscaled=5 * 10**9)))
    later = Written((replace(one, at=15, unscaled=7 * 10**9),))
    insert_log(shards, placed(organization, first, late, later))
    home = str(partition_of(organization, "a", PARTITIONS))
    invoice(shards, organization, "a", (10, 20), {home: 1})
    invoice(shards, organization, "a", (20, 30), {home: 2}, trued_up=True)
    invoice(shards, organization, "a", (30, 40), {home: 3}, state="mismatch")
    invoice(shards, organization, "a", (40, 50), {}, state="waiting", event_names=[], watermark="")
    found = audit(shards, EVERYTHING, PARTITIONS, organization)
    assert found.ok, found.faults
    ones = 10**9
    assert tally(found, organization) == {
        EventClass.UNPRICED: units(ones, 10**6 * ones),
        EventClass.BILLED: units(10 * ones, 100 * ones, 5 * ones),
        EventClass.TRUED_UP: units(3 * ones),
        EventClass.PENDING_LATE: units(7 * ones),
        EventClass.HELD: units(1000 * ones, 10_000 * ones),
        EventClass.NOT_DUE: units(100_000 * ones),
    }
    configure(shards, organization, "stored_organizations", organization, late_policy="ignore")
    assert tally(audit(shards, EVERYTHING, PARTITIONS, organization), organization)[EventClass.IGNORED_LATE] == units(
        7 * ones
    )


def test_duplicates_and_conflicts_are_listed(shards: Shards, organization: str) -> None:
    event = Sent(organization, "a", "calls", "c:1", 5, 7)
    other = replace(event, identity="c:2")
    insert_log(
        shards, placed(organization, Written((event, other)), Written((event,)), Written((replace(other, unscaled=8),)))
    )
    (found,) = audit(shards, EVERYTHING, PARTITIONS, organization).organizations
    home = partition_of(organization, "a", PARTITIONS)
    assert found.duplicates_at == (((1, home, 0, 0), (1, home, 1, 0)), ((1, home, 0, 1), (1, home, 2, 0)))
    assert (found.conflicts, found.conflicts_at) == (1, (((1, home, 0, 1), (1, home, 2, 0)),))
    assert found.classes[EventClass.DUPLICATE] == Tally(2, 15 * SCALE)


def test_repeated_events_are_listed_copy_by_copy_page_by_page(shards: Shards, organization: str) -> None:
    event = Sent(organization, "a", "calls", "c:1", 5, 7 * 10**9)
    keyed = replace(event, identity="k:key:with:colons:3", unscaled=None)
    once = replace(event, identity="c:once")
    neighbours = [customer for customer in "bcdefghij" if partition_of(organization, customer, PARTITIONS) == 0]
    theirs = replace(event, customer=neighbours[0])
    others = replace(event, organization=f"{organization}x")
    insert_log(
        shards,
        placed(
            organization,
            Written((event, keyed, once, theirs)),
            Written((event, others, others)),
            Written((replace(event, unscaled=8 * 10**9), keyed, theirs)),
        ),
    )
    home = partition_of(organization, "a", PARTITIONS)

    def listed(**more: Any) -> list[Repeated]:
        return repeated_events(shards, organization, range(PARTITIONS), more.pop("limit", 10), **more)

    every = listed()
    mine = [each for each in every if each.customer_id == "a"]
    assert {(each.customer_id, each.event_id, each.idempotency_key, each.times) for each in every} == {
        ("a", "1", None, 3), ("a", None, "key:with:colons", 2), (neighbours[0], "1", None, 2),
    }  # fmt: skip
    (conflict,) = [each for each in mine if each.conflicting]
    assert [(each.place, each.value) for each in conflict.copies] == [
        ((1, home, 0, 0), 7), ((1, home, 1, 0), 7), ((1, home, 2, 0), 8),
    ]  # fmt: skip
    assert all(copy.received_at is not None for each in every for copy in each.copies)
    assert listed(conflicts_only=True) == [conflict]
    assert listed(customer_id="a") == mine
    assert [each.last for each in mine] == sorted((each.last for each in mine), reverse=True)  # the latest repeat first
    paged: list[Repeated] = []
    while page := listed(limit=1, after=paged[-1].last if paged else None):
        paged += page
    assert paged == every


# -- planted faults ----------------------------------------------------------------------------------------------------

WHERE = "organization_id = {o:String} AND kafka_offset = 1 AND kafka_index = 1"
# name, what is done to the tables → kind of fault, events, value
FAULTS: list[tuple[str, str, str, int, Decimal]] = [
    ("a row deleted", f"ALTER TABLE usage_events DELETE WHERE {WHERE} SETTINGS mutations_sync = 1", "row lost", 1, Decimal(-5)),
    ("a row doubled under another id", f"INSERT INTO usage_events SELECT * REPLACE ('c:smuggled' AS identity, 0 AS position) FROM usage_events WHERE {WHERE}", "row never accepted", 1, Decimal(5)),
    ("a value changed", f"ALTER TABLE usage_events UPDATE value = 6 WHERE {WHERE} SETTINGS mutations_sync = 1", "value changed", 1, Decimal(1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "kind", "events", "value"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_a_planted_fault_is_named(
    shards: Shards, organization: str, statement: str, kind: str, events: int, value: Decimal
) -> None:
    event = Sent(organization, "a", "calls", "", 5, 2 * 10**9)
    insert_log(
        shards, placed(organization, Written((event,) * 2), Written((event, replace(event, unscaled=5 * 10**9))))
    )
    assert audit(shards, EVERYTHING, PARTITIONS, organization).ok
    on_all(shards, statement, organization)
    found = audit(shards, EVERYTHING, PARTITIONS, organization)
    assert not found.ok
    (fault,) = found.faults
    home = partition_of(organization, "a", PARTITIONS)
    place = (1, home, 1, 1)
    assert (fault.kind, fault.organization_id, fault.tally, fault.places) == (
        kind,
        organization,
        Tally(events, value),
        (place,),
    )
    (balance,) = found.organizations
    assert not balance.balances


def test_a_duplicate_that_stands_in_for_its_first_is_named(shards: Shards, organization: str) -> None:
    first = Sent(organization, "a", "calls", "c:1", 5, 10**9)
    log = placed(organization, Written((first,)), Written((replace(first, unscaled=3 * 10**9),)))
    insert_log(shards, log)
    on_all(
        shards,
        "ALTER TABLE usage_events DELETE WHERE organization_id = {o:String} SETTINGS mutations_sync = 1",
        organization,
    )
    insert_log(shards, dict([list(log.items())[1]]))
    found = audit(shards, EVERYTHING, PARTITIONS, organization)
    (fault,) = found.faults
    home = partition_of(organization, "a", PARTITIONS)
    assert (fault.kind, fault.tally, fault.places) == ("first row lost", Tally(1, Decimal(2)), ((1, home, 0, 0),))
    assert not found.ok


def test_a_message_that_is_not_whole_is_named(shards: Shards, organization: str) -> None:
    insert_log(shards, placed(organization, Written((Sent(organization, "a", "calls", "", 5, 10**9),) * 3), epoch=2))
    home = partition_of(organization, "a", PARTITIONS)
    watermark = Watermark(2, {home: 1, 1 - home: 0})
    clean = [fault for fault in audit(shards, watermark, PARTITIONS).faults if fault.kind == "message not stored whole"]
    for table in ("usage_accepted", "usage_events"):
        on_all(
            shards,
            f"ALTER TABLE {table} DELETE WHERE organization_id = {{o:String}} AND kafka_index = 1 SETTINGS mutations_sync = 1",
            organization,
        )
    found = audit(shards, watermark, PARTITIONS)
    (fault,) = [each for each in found.faults if each.kind == "message not stored whole" and each not in clean]
    assert (2, home, 0, 0) in fault.places
    assert not found.ok


def test_nothing_of_another_organization_is_in_it(shards: Shards, organization: str) -> None:
    other = f"{organization}x"
    for name, worth in ((organization, 1), (other, 2)):
        home = partition_of(name, "a", PARTITIONS)
        (message,) = placed(name, Written((Sent(name, "a", "calls", "", 5, worth),))).values()
        insert_log(shards, {(1, home, 500_000 + worth): message})
    (mine,) = audit(shards, EVERYTHING, PARTITIONS, organization).organizations
    assert (mine.organization_id, mine.accepted) == (organization, Tally(1, SCALE))


def test_a_void_is_a_class(shards: Shards, organization: str) -> None:
    event = Sent(organization, "a", "calls", "c:1", 5, 7)
    void = Void(organization, "a", "calls", "c:1")
    insert_log(shards, placed(organization, Written((event,)), Written((void,)), Written((event,))))
    found = audit(shards, EVERYTHING, PARTITIONS, organization)
    assert found.ok
    assert tally(found, organization) == {EventClass.VOIDED: units(7), EventClass.DUPLICATE: units(7)}
