"""Two real servers that share usage: every answer is that of one server with the same log; one that is away is an error
of what it has, and of nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dashboard.usage_queries import (
    EventFilter,
    StoredEvent,
    accepted_since,
    export_events,
    require_usage,
    stored_events,
    usage_rows,
)
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.process import HOST
from schemas.meter import Aggregation, Meter
from schemas.partition import partition_of
from schemas.period import Cycle
from schemas.watermark import Watermark
from tests.history import Sent, Written, histories, log_of, of_organization
from tests.sharding import BATCH_COLUMNS, insert_log, insert_row, migrated, settings_of
from warehouse.audit import audit
from warehouse.client import ClickHouseError, WarehouseUnavailable
from warehouse.counted_at import totals_at
from warehouse.coverage import EXPIRED, coverage, recounted_coverage
from warehouse.epochs import claims, epochs, register_epoch
from warehouse.evidence import counted_events, row_faults
from warehouse.late import late_windows
from warehouse.letters import stored_batches
from warehouse.migrate import migrate
from warehouse.one_server import SeveralServers
from warehouse.one_store import StoreReplaced, one_store
from warehouse.placement import Misplaced
from warehouse.repeats import repeated_events
from warehouse.shard_epochs import register_everywhere
from warehouse.shards import Shards, open_shards
from warehouse.totals import TotalsRequest, exact_totals, independent_totals
from warehouse.used import used_months

PARTITIONS = 4
CUSTOMERS = ("a", "b", "ü")
NAMES = ("calls", "bytes")
ALL_TIME = Cycle(0, 10**9)
Engines = Callable[[], ClickHouseLocal]


@pytest.fixture(scope="module")
def one(clickhouse: ClickHouseLocal) -> Iterator[Shards]:
    """One server."""
    with migrated([clickhouse], f"s{secrets.token_hex(6)}", PARTITIONS) as made:
        yield made


@pytest.fixture(scope="module")
def two(clickhouse: ClickHouseLocal, second_clickhouse: ClickHouseLocal) -> Iterator[Shards]:
    """Two servers that share usage."""
    with migrated([clickhouse, second_clickhouse], f"s{secrets.token_hex(6)}", PARTITIONS) as made:
        yield made


def home(organization: str) -> Callable[[str], int]:
    return lambda customer: partition_of(organization, customer, PARTITIONS)


def meters(organization: str) -> list[Meter]:
    return [
        Meter(
            id=f"mtr_{name}_{kind}", organization_id=organization, name=name, event_name=name, unit="unit", aggregation=kind,
            created_at=0,
        )
        for name in NAMES
        for kind in Aggregation
    ]  # fmt: skip


def fill(store: Shards, organization: str, log: Any) -> None:
    """The log, a catalog that prices the first two customers, and an invoice of one of them."""
    for customer in CUSTOMERS[:2]:
        insert_row(store, "stored_customers", organization_id=organization, id=customer, version=1)
        document = (
            f'{{"id":"sub_{customer}","organization_id":"{organization}","customer_id":"{customer}","product_id":"prod",'
            '"started_at":2,"ends_at":null,"billing_interval":"month","time_zone":"UTC","created_at":0,'
            '"collection_method":"charge_automatically"}'
        )
        insert_row(
            store, "stored_subscriptions", organization_id=organization, id=f"sub_{customer}", version=1, document=document
        )  # fmt: skip
    meter = {"event_name": "calls", "aggregation": "sum"}
    insert_row(store, "stored_meters", organization_id=organization, id="mtr", version=1, **meter)
    insert_row(store, "stored_products", organization_id=organization, id="prod", version=1, meter_ids=["mtr"])
    insert_row(
        store, "stored_invoices", organization_id=organization, id=f"inv_{organization}", version=1, customer_id="a",
        subscription_id="sub_a", cycle_start=at(2), cycle_end=at(20), active_until=at(20), state="paid",
        event_names=["calls"], watermark='{"epoch":1,"offsets":{"0":1,"1":1,"2":1,"3":1}}',
    )  # fmt: skip
    insert_log(store, log)


def at(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1_000_000, UTC)


def windows(organization: str, spans: Sequence[tuple[int, int]]) -> list[TotalsRequest]:
    return [
        TotalsRequest(organization, customer, name, start, start + length)
        for customer in (*CUSTOMERS, "nobody")
        for name in NAMES
        for start, length in spans
    ]


def pages(store: Shards, organization: str, wanted: EventFilter) -> list[StoredEvent]:
    """Page by page, two at a time."""
    found: list[StoredEvent] = []
    while True:
        last = found[-1] if found else None
        after = last and (last.timestamp, last.epoch, last.partition, last.offset, last.index)
        page = stored_events(store, organization, wanted, 2, after)
        found += page
        if len(page) < 2:
            return found


def every_answer(
    store: Shards, organization: str, spans: Sequence[tuple[int, int]], below: Watermark, since: Watermark
) -> dict[str, Any]:
    """What billing, audit, pages and commands ask."""
    wanted, mine = windows(organization, spans), meters(organization)
    many = wanted + [TotalsRequest(organization, f"nobody{n}", NAMES[0], n, n + 1) for n in range(120)]
    one_customer = EventFilter(ALL_TIME, customer_id="a")
    found = audit(store, below, PARTITIONS, organization)
    calls = TotalsRequest(organization, "a", "calls", 0, 10**6)
    return {
        "exact": exact_totals(store, wanted, below),
        "exact, staged": exact_totals(store, many, below),
        "independent": independent_totals(store, many, below),
        "at": totals_at(store, [(one, where) for one in wanted for where in (since, below)], PARTITIONS, organization),
        "late": late_windows(store, wanted, since, below),
        "audit": replace(found, seconds=0.0),
        "repeats": repeated_events(store, organization, range(PARTITIONS), 100),
        "rows": usage_rows(store, organization, mine, ALL_TIME, watermark=below),
        "rows of all": usage_rows(store, organization, mine, ALL_TIME, watermark=below, by_customer=False),
        "rows by month": usage_rows(
            store, organization, mine, ALL_TIME, watermark=None, window="month", group_by="region"
        ),
        "rows of one": usage_rows(store, organization, mine, ALL_TIME, watermark=below, customer_id="a"),
        "events": pages(store, organization, EventFilter(ALL_TIME, watermark=below)),
        "events of one": pages(store, organization, one_customer),
        "export": sorted(
            (each.epoch, each.partition, each.offset, each.index)
            for block in export_events(store, organization, EventFilter(ALL_TIME))
            for each in block
        ),
        "accepted": accepted_since(store, organization, 0),
        "behind a line": [each for block in counted_events(store, calls, below, since) for each in block],
        "row faults": row_faults(store, calls, home(organization)("a"), below),
        "used": [
            sorted(used_months(store, partition, below, [(organization, None, None)]), key=str)
            for partition in range(PARTITIONS)
        ],
    }


@settings(
    max_examples=3,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    histories(),
    st.lists(st.tuples(st.integers(0, 15), st.integers(1, 20)), min_size=1, max_size=2),
    st.tuples(st.integers(1, 2), st.integers(0, 4), st.integers(0, 4)),
)
def test_two_servers_answer_what_one_does(
    one: Shards,
    two: Shards,
    messages: Sequence[tuple[int, Written]],
    spans: Sequence[tuple[int, int]],
    limit: tuple[int, int, int],
) -> None:
    organization = secrets.token_hex(8)
    log = log_of(of_organization(messages, organization), PARTITIONS, home(organization))
    epoch, *ends = limit
    below, since = Watermark(epoch, dict(enumerate((*ends, 9, 9)))), Watermark(1, dict(enumerate((1, 0, 1, 2))))
    answers: list[dict[str, Any]] = []
    for store in (one, two):
        fill(store, organization, log)
        answers.append(every_answer(store, organization, spans, below, since))
    for name, answer in answers[0].items():
        assert answers[1][name] == answer, name


def test_usage_lies_on_both_servers_and_nothing_on_two(two: Shards) -> None:
    organization = secrets.token_hex(8)
    customers = [f"c{n}" for n in range(40)]
    sent = [(1, Written((Sent(organization, customer, "calls", "", 5, 10**9),))) for customer in customers]
    insert_log(two, log_of(sent, PARTITIONS, home(organization)))
    stored = [
        set(client.query(f"SELECT customer_id FROM usage WHERE organization_id = '{organization}'").result_rows)
        for client in (two.at(0), two.at(1))
    ]
    assert all(len(of_server) > 5 for of_server in stored)
    assert not stored[0] & stored[1]
    assert len(stored[0] | stored[1]) == 40


def test_coverage_is_each_servers_own(one: Shards, two: Shards) -> None:
    for store in (one, two):
        for partition in range(PARTITIONS):
            row = [77, partition, 0, 3 + partition, 0, EXPIRED]
            store.of(partition).insert("ingest_batches", [row], column_names=(*BATCH_COLUMNS, "reason"))
        assert coverage(store, 77, PARTITIONS).offsets == {0: 3, 1: 4, 2: 5, 3: 6}
        assert coverage(store, 77, PARTITIONS, only=[2]).offsets == {2: 5}
    found = [
        audit(store, Watermark(77, dict.fromkeys(range(PARTITIONS), 9)), PARTITIONS).faults for store in (one, two)
    ]
    expired = [[fault for fault in faults if fault.kind.startswith("messages expired")] for faults in found]
    assert expired[0] == expired[1]
    assert len(expired[0][0].places) == 2 * PARTITIONS
    assert recounted_coverage(two.at(0), 77, PARTITIONS).offsets == {0: 3, 1: 0, 2: 5, 3: 0}, "one server knows its own"


def test_what_a_partition_left_behind_is_in_no_answer(two: Shards) -> None:
    organization = secrets.token_hex(8)
    log = log_of([(1, Written((Sent(organization, "a", "calls", "c:1", 5, 10**9),)))], PARTITIONS, home(organization))
    ((_, partition, _),) = log
    insert_log(two, log)
    insert_log(two.at(1 - two.shard_of(partition)), log)  # where it was before
    wanted = EventFilter(ALL_TIME)
    assert len(stored_events(two, organization, wanted, 10, None)) == 1
    assert sum(map(len, export_events(two, organization, wanted))) == 1
    assert accepted_since(two, organization, 0) == 1
    (row,) = usage_rows(two, organization, meters(organization)[1:2], ALL_TIME, watermark=None, by_customer=False)
    assert row.quantity == 1
    assert stored_batches(two, [b"\0" * 16]) <= {b"\0" * 16}


def test_an_older_copy_of_one_server_is_told(two: Shards) -> None:
    with one_store(two) as mark:
        wanted = windows("nobody", [(0, 5)])
        assert exact_totals(two, wanted, None, mark=mark).keys() == set(wanted)
    with pytest.raises(StoreReplaced), one_store(two):
        two.at(1).command("TRUNCATE TABLE store_marks")


def test_a_topic_has_the_same_epoch_on_every_server(two: Shards) -> None:
    assert register_epoch(two.first, "before") == 1
    assert register_everywhere(two, "first") == 2
    assert register_everywhere(two, "second") == 3
    assert register_everywhere(two, "first") == 2
    assert epochs(two.at(0)) == epochs(two.at(1)) == {"before": 1, "first": 2, "second": 3}
    # An older copy of the first server has forgotten them; what the other one has under those numbers keeps them.
    known = set(claims(two.first))
    two.first.command("TRUNCATE TABLE kafka_epochs")
    assert register_everywhere(two, "third") == 4
    assert known < set(claims(two.first)) == set(claims(two.at(1)))


# -- one of them is away -----------------------------------------------------------------------------------------------


def customers_of_each(two: Shards, organization: str) -> tuple[str, str]:
    """A customer of the first server and one of the second."""
    by_server = {two.shard_of(home(organization)(name)): name for name in map(str, range(50))}
    return by_server[0], by_server[1]


@pytest.mark.parametrize(("how", "gone"), [("killed", 0), ("killed", 1), ("paused", 1)])
def test_a_server_that_is_away_is_an_error_of_what_it_has_alone(
    clickhouse_factory: Engines, how: str, gone: int
) -> None:
    engines = [clickhouse_factory(), clickhouse_factory()]
    for engine in engines:
        engine.start()
    migrated(engines, "usage", PARTITIONS).close()
    organization = "o"
    of_servers = settings_of(engines, "usage", PARTITIONS)
    with open_shards(of_servers, read_timeout_seconds=1) as two:
        customers = customers_of_each(two, organization)
        events = [Sent(organization, customer, "calls", "", 5, 10**9) for customer in customers]
        insert_log(two, log_of([(1, Written((event,))) for event in events], PARTITIONS, home(organization)))
    wanted = [TotalsRequest(organization, customer, "calls", 0, 10) for customer in customers]
    assert_answers(of_servers, organization, wanted, None)
    engines[gone].kill() if how == "killed" else engines[gone].pause()
    assert_answers(of_servers, organization, wanted, gone)
    engines[gone].start() if how == "killed" else engines[gone].resume()
    assert_answers(of_servers, organization, wanted, None)


def assert_answers(of_servers: Any, organization: str, wanted: Sequence[TotalsRequest], gone: int | None) -> None:
    """Questions that need the server that is gone fail, and others are answered. gone: None: all are there."""
    with open_shards(of_servers, read_timeout_seconds=1) as two:
        partitions = [home(organization)(window.customer_id) for window in wanted]
        for window, partition in zip(wanted, partitions, strict=True):
            of_one = EventFilter(ALL_TIME, customer_id=window.customer_id)
            questions: list[Callable[[], object]] = [
                lambda window=window: exact_totals(two, [window], None)[window].count,
                lambda window=window: independent_totals(two, [window], None)[window].count,
                lambda of_one=of_one: len(stored_events(two, organization, of_one, 10, None)),
                lambda partition=partition: coverage(two, 1, PARTITIONS, only=[partition]).offsets[partition],
            ]
            for question in questions:
                if two.shard_of(partition) == gone:
                    with pytest.raises((WarehouseUnavailable, ClickHouseError)):
                        question()
                else:
                    assert question() == 1
        everything: list[Callable[[], object]] = [
            lambda: exact_totals(two, wanted, None),
            lambda: coverage(two, 1, PARTITIONS),
            lambda: usage_rows(two, organization, meters(organization), ALL_TIME, watermark=None),
            lambda: stored_events(two, organization, EventFilter(ALL_TIME), 10, None),
            lambda: list(export_events(two, organization, EventFilter(ALL_TIME))),
            lambda: require_usage(two, organization, None),
            lambda: audit(two, Watermark(1, dict.fromkeys(range(PARTITIONS), 1)), PARTITIONS),
        ]
        for question in everything:
            if gone is None:
                question()
            else:
                with pytest.raises((WarehouseUnavailable, ClickHouseError)):
                    question()


# -- which servers -----------------------------------------------------------------------------------------------------


def test_servers_in_another_order_or_without_one_of_them_are_refused(
    clickhouse: ClickHouseLocal, unique: str, two: Shards
) -> None:
    first, second = clickhouse.dsn(f"{unique}a"), clickhouse.dsn(f"{unique}b")  # two databases will do
    shards = settings_of([clickhouse], unique, PARTITIONS, clickhouse_dsn=first, clickhouse_shards=f"{first},{second}")
    assert migrate(shards)
    assert migrate(shards) == []
    for wrong, reason in ((f"{second},{first}", "keep the order"), (first, "name all shards")):
        servers = settings_of(
            [clickhouse], unique, PARTITIONS, clickhouse_dsn=wrong.split(",")[0],
            clickhouse_shards=wrong if "," in wrong else "",
        )  # fmt: skip
        with pytest.raises(Misplaced, match=reason):
            migrate(servers)
        with pytest.raises(Misplaced, match=reason), open_shards(servers) as opened:
            opened.at(0)
    twice = settings_of(
        [clickhouse],
        unique,
        PARTITIONS,
        clickhouse_dsn=first,
        clickhouse_shards=f"{first},{first.replace(HOST, 'localhost')}",
    )
    with pytest.raises(SeveralServers, match="the same database"):
        migrate(twice)


def test_partitions_stay_where_they_are_when_a_server_is_added(clickhouse: ClickHouseLocal, unique: str) -> None:
    first, second = clickhouse.dsn(f"{unique}a"), clickhouse.dsn(f"{unique}b")
    alone = settings_of([clickhouse], f"{unique}a", PARTITIONS)
    migrate(alone)
    with open_shards(alone) as one:
        insert_log(one, log_of([(1, Written((Sent("o", "a", "calls", "", 5, 1),)))], PARTITIONS, home("o")))
    both = settings_of([clickhouse], unique, PARTITIONS, clickhouse_dsn=first, clickhouse_shards=f"{first},{second}")
    migrate(both)
    with open_shards(both) as two:
        assert set(two.placed.values()) == {0}
        assert exact_totals(two, windows("o", [(0, 10)]), None)[TotalsRequest("o", "a", "calls", 0, 10)].count == 1


def test_a_server_that_was_one_of_its_own_is_refused(clickhouse: ClickHouseLocal, unique: str) -> None:
    first, second = clickhouse.dsn(f"{unique}a"), clickhouse.dsn(f"{unique}b")
    with migrated([clickhouse], f"{unique}b", PARTITIONS) as one:
        insert_log(one, log_of([(1, Written((Sent("o", "a", "calls", "", 5, 1),)))], PARTITIONS, home("o")))
    both = settings_of([clickhouse], unique, PARTITIONS, clickhouse_dsn=first, clickhouse_shards=f"{first},{second}")
    with pytest.raises(Misplaced, match="a server of its own"):
        migrate(both)
