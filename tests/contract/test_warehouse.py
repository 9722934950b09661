"""What ClickHouse answers on the real engine: totals equal to a fold in Python, coverage, epochs, migrations."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas.settings import Settings
from schemas.watermark import Watermark
from stream_processors.avro_splice import by_schema, container, read_head
from stream_processors.inserts import DOORS, INSERT_SETTINGS
from tests.history import (
    CUSTOMERS,
    NAMES,
    Folded,
    Log,
    Sent,
    Void,
    Written,
    encoded,
    fold,
    histories,
    log_of,
    of_organization,
    total,
)
from tests.waiting import until
from warehouse import migrate as migrating
from warehouse.audit import Tally, audit
from warehouse.audit_windows import EventClass
from warehouse.client import ASIDE, PROMPT, Client, WarehouseUnavailable, connect
from warehouse.counted_at import totals_at
from warehouse.coverage import checkpoint, coverage, recounted_coverage
from warehouse.epochs import UnknownTopic, epochs, lookup_epoch, register_epoch
from warehouse.late import late_windows
from warehouse.migrate import ChangedMigration, InvalidDatabaseName, migrate, migrations
from warehouse.one_store import StoreReplaced, leave_mark, one_store
from warehouse.totals import NO_USAGE, IncompleteAnswer, TotalsRequest, UsageTotal, exact_totals, independent_totals

PARTITIONS = 2
BY_MESSAGE = 13  # the migration from which on events without ids are known by their message
EVERYTHING = Watermark(2, {0: 10**6, 1: 10**6})


@pytest.fixture(scope="module")
def client(clickhouse: ClickHouseLocal) -> Iterator[Client]:
    """Of a migrated database of this module."""
    name = f"w{secrets.token_hex(6)}"
    migrate(Settings(clickhouse_dsn=clickhouse.dsn(name)))
    with connect(Settings(clickhouse_dsn=clickhouse.dsn(name))) as made:
        yield made
        made.command(f"DROP DATABASE {name} SYNC")


# -- totals ------------------------------------------------------------------------------------------------------------


windows = st.lists(st.tuples(st.integers(0, 15), st.integers(1, 20)), min_size=1, max_size=3)


def home(customer: str) -> int:
    return CUSTOMERS.index(customer) % PARTITIONS


def log_of_events(*events: Sent) -> Log:
    """Each a message of its own."""
    return log_of([(1, Written((event,))) for event in events], PARTITIONS, home)


def insert(client: Client, log: Log) -> None:
    """Later messages first: the order of inserts must not matter. Those repeated once more."""
    every = [(read_head(*place, encoded(message), None), message.repeated) for place, message in log.items()]
    for some in ([head for head, _ in reversed(every)], [head for head, repeated in every if repeated]):
        for schema_id, of_schema in by_schema(some).items():
            body = b"".join(container(of_schema, b"0" * 16))
            client.raw_insert(DOORS[schema_id], insert_block=body, fmt="Avro", settings=INSERT_SETTINGS)


def expected_total(folded: Folded, request: TotalsRequest) -> UsageTotal:
    name, span = request.event_name, (request.start_us, request.end_us)
    unscaled, count, greatest = total(folded.counted, request.customer_id, name, *span)
    scale = Decimal("1e-9")
    return UsageTotal(unscaled * scale, count, None if greatest is None else greatest * scale)


def equal(found: UsageTotal, expected: UsageTotal) -> bool:
    return (found.sum, found.count, found.max) == (expected.sum, expected.count, expected.max)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(histories(), windows, st.one_of(st.none(), st.tuples(st.integers(1, 2), st.integers(0, 4), st.integers(0, 4))))
def test_totals_equal_a_fold_in_python(
    client: Client,
    messages: Sequence[tuple[int, Written]],
    spans: Sequence[tuple[int, int]],
    limit: tuple[int, int, int] | None,
) -> None:
    # An organization of its own keeps the examples apart: tables need not be emptied, and rows of others lie around.
    organization = secrets.token_hex(8)
    log = log_of(of_organization(messages, organization), PARTITIONS, home)
    insert(client, log)
    below = None if limit is None else Watermark(limit[0], {0: limit[1], 1: limit[2]})
    wanted = [
        TotalsRequest(organization, customer, name, start, start + length)
        for customer in CUSTOMERS
        for name in NAMES
        for start, length in spans
    ]
    # Few windows go with the query, many are staged in a table.
    many = wanted + [TotalsRequest(organization, "nobody", NAMES[0], n, n + 1) for n in range(100)]
    folded = fold(log, below)
    for totals in (exact_totals, independent_totals):
        for asked in (wanted, many):
            found = totals(client, asked, below)
            assert found.keys() == set(asked)
            for request in wanted:
                assert equal(found[request], expected_total(folded, request)), (totals.__name__, request, below)
    if below is None:
        counted = client.query(
            "SELECT customer_id, event_name, kafka_epoch, kafka_offset, kafka_index FROM usage WHERE organization_id = {o:String}",
            parameters={"o": organization},
        ).result_rows
        assert sorted(tuple(row) for row in counted) == sorted(
            (each.event.customer, each.event.name, each.place[0], each.place[2], each.index) for each in folded.counted
        )


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(histories(), windows, st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_late_windows_are_those_with_something_at_or_after_the_watermark(
    client: Client,
    messages: Sequence[tuple[int, Written]],
    spans: Sequence[tuple[int, int]],
    offsets: tuple[int, int],
) -> None:
    organization = secrets.token_hex(8)
    log = log_of(of_organization(messages, organization), PARTITIONS, home)
    insert(client, log)
    since, until_now = Watermark(1, dict(enumerate(offsets))), Watermark(3, {0: 0, 1: 0})
    wanted = [
        TotalsRequest(organization, customer, name, start, start + length)
        for customer in CUSTOMERS
        for name in NAMES
        for start, length in spans
    ]

    def with_any(items: Sequence[Sent | Void]) -> set[TotalsRequest]:
        return {
            request
            for request in wanted
            for item in items
            if (item.customer, item.name) == (request.customer_id, request.event_name)
            and (isinstance(item, Void) or request.start_us <= item.at < request.end_us)
        }

    folded = fold(log)
    firsts = [each.event for each in folded.counted + folded.voided if not since.covers(*each.place)]
    late = [item for place, message in log.items() if not since.covers(*place) for item in message.items]
    # A merge may have taken a duplicate away, which changes no total.
    assert with_any(firsts) <= late_windows(client, wanted, since, until_now) <= with_any(late)


def test_what_was_stored_by_its_place_is_not_counted_again_after_the_upgrade(clickhouse: ClickHouseLocal) -> None:
    """Messages of an older sink, read again by this one; and a message that lies in the log twice, after that."""
    name = f"w{secrets.token_hex(6)}"
    with connect(Settings(clickhouse_dsn=clickhouse.dsn("default"))) as made:
        made.command(f"CREATE DATABASE {name}")
    with connect(Settings(clickhouse_dsn=clickhouse.dsn(name))) as client:
        before = tuple(each for each in migrations() if each.number < BY_MESSAGE)
        migrating.apply(client, before)
        event = Sent("o", "a", "calls", "", 5, 10**9)
        message = Written((event, event), batch=7)
        old = {(1, 0, 0): message, (1, 0, 1): message}  # the older sink took them for four events, and so they stay
        insert(client, old)
        migrating.apply(client, migrations())
        migrating.apply(client, migrations())
        request = TotalsRequest("o", "a", "calls", 0, 10)

        def counts() -> set[int]:
            assert client.query("SELECT count() FROM usage").result_rows[0][0] == _count(client, request)
            return {exact_totals(client, [request], None)[request].count, _count(client, request)}

        assert counts() == {4}
        insert(client, old)
        assert counts() == {4}
        new = Written((event, event), batch=8)
        insert(client, {(1, 0, 2): new, (1, 0, 3): replace(new, repeated=True), (1, 0, 4): new})
        assert counts() == {6}
        insert(client, old)
        assert counts() == {6}
        found = audit(client, Watermark(1, {0: 5}), 1)
        assert found.ok, found.faults
        assert found.organizations[0].classes[EventClass.DUPLICATE] == Tally(4, Decimal(4))
        client.command(f"DROP DATABASE {name} SYNC")


def _count(client: Client, request: TotalsRequest) -> int:
    return independent_totals(client, [request], None)[request].count


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(histories(), windows, st.lists(st.tuples(st.integers(1, 2), st.integers(0, 4)), min_size=1, max_size=4))
def test_totals_at_many_watermarks_equal_those_at_each(
    client: Client,
    messages: Sequence[tuple[int, Written]],
    spans: Sequence[tuple[int, int]],
    limits: Sequence[tuple[int, int]],
) -> None:
    organization = secrets.token_hex(8)
    insert(client, log_of(of_organization(messages, organization), PARTITIONS, home))
    wanted = [
        TotalsRequest(organization, customer, name, start, start + length)
        for customer in CUSTOMERS
        for name in NAMES
        for start, length in spans
    ]
    # The same limit in every partition: a customer's is chosen otherwise here than by the gateway.
    watermarks = [Watermark(epoch, dict.fromkeys(range(PARTITIONS), offset)) for epoch, offset in limits]
    found = totals_at(client, [(one, at) for one in wanted for at in watermarks], PARTITIONS, organization)
    for at in watermarks:
        expected = exact_totals(client, wanted, at)
        for one in wanted:
            assert equal(found[one, at], expected[one]), (one, at)


def test_a_duplicate_in_the_window_does_not_stand_in_for_a_first_outside_of_it(client: Client) -> None:
    first = Sent("months", "a", "calls", "c:1", 5, 7_000_000_000)
    insert(client, log_of_events(first, replace(first, at=25, unscaled=9_000_000_000)))
    march, april = (TotalsRequest("months", "a", "calls", start, start + 20) for start in (0, 20))
    for totals in (exact_totals, independent_totals):
        found = totals(client, [march, april], None)
        assert equal(found[march], UsageTotal(Decimal(7), 1, Decimal(7)))
        assert found[april] == NO_USAGE
    rows = client.query(
        "SELECT count() FROM usage WHERE organization_id = 'months' AND timestamp >= fromUnixTimestamp64Micro(20)"
    ).result_rows
    assert [tuple(row) for row in rows] == [(0,)]


def test_the_windows_of_one_tenant_hold_nothing_of_another(client: Client) -> None:
    insert(client, log_of_events(Sent("mine", "a", "calls", "c:1", 5, 1), Sent("theirs", "a", "calls", "c:1", 5, 2)))
    for name, worth in (("mine", 1), ("theirs", 2), ("no one's", None)):
        request = TotalsRequest(name, "a", "calls", 0, 10)
        expected = NO_USAGE if worth is None else UsageTotal(worth * Decimal("1e-9"), 1, worth * Decimal("1e-9"))
        for totals in (exact_totals, independent_totals):
            assert equal(totals(client, [request], None)[request], expected)


@pytest.mark.parametrize(
    "customer", ["it's", "back\\slash", "tab\tand\nline", "[('x', 1)]", "{x:String}", "größer ⩾ 1", "%s", "'" * 240]
)
def test_windows_name_any_customer(client: Client, customer: str) -> None:
    event = Sent("names", customer, f"{customer} calls", "c:1", 5, 7_000_000_000)
    insert(client, log_of([(1, Written((event,)))], PARTITIONS, lambda _: 0))
    request = TotalsRequest("names", customer, f"{customer} calls", 0, 10)
    others = [TotalsRequest("names", customer, f"{customer} calls", n, n + 1) for n in range(10, 130)]
    for totals in (exact_totals, independent_totals):
        for asked in ([request], [request, *others[:90]], [request, *others]):
            assert equal(totals(client, asked, None)[request], UsageTotal(Decimal(7), 1, Decimal(7)))


def test_a_watermark_decides_whether_a_tombstone_counts(client: Client) -> None:
    """One voided after its invoice stays on it, and is gone from everything counted later."""
    event = Sent("voids", "a", "calls", "c:1", 5, 7_000_000_000)
    other = replace(event, identity="c:2")
    void = Void("voids", "a", "calls", "c:1")
    insert(
        client, log_of([(1, Written((event, other))), (1, Written((void,))), (1, Written((event,)))], PARTITIONS, home)
    )
    request = TotalsRequest("voids", "a", "calls", 0, 10)
    both, one = UsageTotal(Decimal(14), 2, Decimal(7)), UsageTotal(Decimal(7), 1, Decimal(7))
    for totals in (exact_totals, independent_totals):
        assert equal(totals(client, [request], Watermark(1, {0: 1}))[request], both)
        assert equal(totals(client, [request], Watermark(1, {0: 2}))[request], one)
        assert equal(totals(client, [request], None)[request], one), "sent again, it stays a duplicate"


def test_the_greatest_of_negative_and_positive_values_is_the_same_however_often_it_is_asked(client: Client) -> None:
    """From its third run on a query may be compiled, and compiled max of decimals took -5 for greater than 7."""
    values = [7_000_000_000, -5_000_000_000, None, -4_000_000_000]
    insert(client, log_of_events(*(Sent("below", "a", "calls", f"c:{n}", 5, value) for n, value in enumerate(values))))
    request = TotalsRequest("below", "a", "calls", 0, 10)
    for totals in (exact_totals, independent_totals):
        for _ in range(5):
            assert equal(totals(client, [request], None)[request], UsageTotal(Decimal(-2), 4, Decimal(7)))


class TwoNodes:
    """A client behind which are two nodes: one takes inserts, the other answers, and nothing is replicated."""

    def __init__(self, answering: Client, inserting: Client) -> None:
        self._answering, self._inserting = answering, inserting
        self.inserts = 0

    def query(self, *args: Any, **more: Any) -> Any:
        return self._answering.query(*args, **more)

    def insert(self, *args: Any, **more: Any) -> Any:
        self.inserts += 1
        return self._inserting.insert(*args, **more)


def test_windows_that_the_answering_node_does_not_have_are_not_zero(
    client: Client, clickhouse_factory: Callable[[], ClickHouseLocal]
) -> None:
    """An invoice of 0 was paid: windows were staged at one node and joined at another."""
    insert(client, log_of_events(Sent("nodes", "a", "calls", "c:1", 5, 7_000_000_000)))
    wanted = [TotalsRequest("nodes", "a", "calls", start, start + 1) for start in range(150)]
    other = clickhouse_factory()
    other.start()
    migrate(Settings(clickhouse_dsn=other.dsn("other")))
    with connect(Settings(clickhouse_dsn=other.dsn("other"))) as elsewhere:
        two = TwoNodes(client, elsewhere)
        nodes = cast("Client", two)
        for totals in (exact_totals, independent_totals):
            two.inserts = 0
            with pytest.raises(IncompleteAnswer, match="0 of 150"):
                totals(nodes, wanted, None)
            assert two.inserts == 3, "it is asked for again before it is given up"
        with pytest.raises(IncompleteAnswer):
            late_windows(nodes, wanted, Watermark(1, {}), EVERYTHING)
        with one_store(elsewhere) as mark, pytest.raises(IncompleteAnswer):
            exact_totals(client, wanted[:5], None, mark=mark)
        with one_store(client) as mark:
            found = exact_totals(client, wanted, None, mark=mark)
        assert equal(found[wanted[5]], UsageTotal(Decimal(7), 1, Decimal(7)))
        assert late_windows(client, wanted, Watermark(1, {}), EVERYTHING) == {wanted[5]}


def test_windows_that_were_staged_twice_count_nothing_twice(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insert whose answer was lost, and that a proxy sent again."""
    insert(client, log_of_events(Sent("twice", "a", "calls", "c:1", 5, 7_000_000_000)))
    wanted = [TotalsRequest("twice", "a", "calls", start, start + 1) for start in range(150)]
    once = TwoNodes.insert

    def again(self: TwoNodes, *args: Any, **more: Any) -> None:
        once(self, *args, **more)
        if self.inserts == 1:
            once(self, *args, **more)

    monkeypatch.setattr(TwoNodes, "insert", again)
    found = exact_totals(cast("Client", TwoNodes(client, client)), wanted, None)
    assert equal(found[wanted[5]], UsageTotal(Decimal(7), 1, Decimal(7)))


def test_no_windows_are_no_query(client: Client) -> None:
    assert exact_totals(client, [], None) == {}


# -- priorities --------------------------------------------------------------------------------------------------------


def test_what_reads_much_pauses_while_a_page_waits(client: Client, clickhouse: ClickHouseLocal) -> None:
    """By the server's clock: which of two client threads hears first that its query has ended, says nothing."""
    of_server = Settings(clickhouse_dsn=clickhouse.dsn("default"))

    def last_block_at(settings: Mapping[str, object], name: str, query: str) -> datetime:
        with connect(of_server, more_settings=settings) as own:
            return own.query(f"/* {name} */ {query}").result_rows[0][0]

    with ThreadPoolExecutor(2) as threads:
        slow = "SELECT max(nowInBlock()), sum(sleepEachRow(0.2)) FROM numbers(15) SETTINGS max_block_size = 1"
        page = threads.submit(last_block_at, PROMPT, "page", slow)
        until(
            lambda: client.query("SELECT count() FROM system.processes WHERE query LIKE '/* page%'").result_rows[0][0]
        )
        fast = "SELECT max(nowInBlock()), sum(number) FROM numbers(20000000)"
        figures = threads.submit(last_block_at, ASIDE, "figures", fast)
        assert figures.result(60) >= page.result(60)


# -- coverage ----------------------------------------------------------------------------------------------------------

# ranges stored of a partition → first offset that is missing
COVERED: list[tuple[list[tuple[int, int]], int]] = [
    ([], 0),
    ([(0, 1)], 1),
    ([(1, 2)], 0),
    ([(0, 1), (1, 2), (2, 3)], 3),
    ([(0, 1), (1, 2), (1, 2)], 2),            # stored twice
    ([(0, 1), (2, 3)], 1),                    # a hole
    ([(0, 1), (2, 3), (2, 3)], 1),            # a row twice does not fill it
    ([(0, 5), (5, 6)], 6),                    # a gap that is accounted for
    ([(0, 5), (0, 5), (5, 6)], 6),
    ([(0, 5), (6, 7)], 5),
    ([(0, 3), (1, 2), (3, 4)], 4),            # a gap, and a message within it after all
    ([(0, 3), (1, 2), (4, 5)], 3),
]  # fmt: skip


def test_coverage_ends_at_the_first_offset_that_is_missing(client: Client) -> None:
    epoch, names = 7, ["kafka_epoch", "kafka_partition", "kafka_offset", "next_offset", "events"]
    for partition, (ranges, _) in enumerate(COVERED):
        for first, after in ranges:  # an insert each: rows are not merged in one
            client.insert("ingest_batches", [[epoch, partition, first, after, 1]], column_names=names)
    expected = {partition: end for partition, (_, end) in enumerate(COVERED)}
    found = coverage(client, epoch, len(COVERED))
    assert found == Watermark(epoch, expected)
    # Asked again after a checkpoint, the answer is the same, and what came since is in it.
    checkpoint(client, epoch, len(COVERED), leave_mark(client))
    assert coverage(client, epoch, len(COVERED)) == found
    client.insert("ingest_batches", [[epoch, 5, 1, 2, 1]], column_names=names)
    assert coverage(client, epoch, len(COVERED)).offsets[5] == 3
    # A checkpoint of another epoch is none.
    assert coverage(client, 8, 2) == Watermark(8, {0: 0, 1: 0})


@pytest.fixture
def messages(client: Client) -> Callable[[int, range], None]:
    """Have the offsets of partition 0 stored."""

    def store(epoch: int, offsets: range) -> None:
        rows = [[epoch, 0, offset, offset + 1, 1] for offset in offsets]
        client.insert(
            "ingest_batches",
            rows,
            column_names=["kafka_epoch", "kafka_partition", "kafka_offset", "next_offset", "events"],
        )

    return store


def checkpoints(client: Client, epoch: int) -> list[int]:
    query = "SELECT DISTINCT next_offset FROM coverage_checkpoints WHERE kafka_epoch = {e:UInt16} ORDER BY ALL"
    return [row[0] for row in client.query(query, parameters={"e": epoch}).result_rows]


def test_what_lies_before_a_checkpoint_is_not_read_again(
    client: Client, messages: Callable[[int, range], None]
) -> None:
    messages(20, range(10))
    checkpoint(client, 20, 1, leave_mark(client))
    assert checkpoints(client, 20) == [10]
    # Proof by a row that only a whole reading would miss.
    client.command("DELETE FROM ingest_batches WHERE kafka_epoch = 20 AND kafka_offset = 3")
    messages(20, range(10, 12))
    assert coverage(client, 20, 1).offsets == {0: 12}
    # Whoever must know reads all, and then everyone does.
    assert recounted_coverage(client, 20, 1).offsets == {0: 3}
    assert checkpoints(client, 20) == []
    assert coverage(client, 20, 1).offsets == {0: 3}


def test_a_checkpoint_without_its_message_counts_for_nothing(
    client: Client, messages: Callable[[int, range], None]
) -> None:
    """As of rows that were taken away, be it by a copy that is older; what was stored since lies behind a hole."""
    messages(21, range(10))
    checkpoint(client, 21, 1, leave_mark(client))
    client.command("DELETE FROM ingest_batches WHERE kafka_epoch = 21 AND kafka_offset >= 4")
    assert coverage(client, 21, 1).offsets == {0: 4}
    messages(21, range(12, 20))
    assert coverage(client, 21, 1).offsets == {0: 4}
    checkpoint(client, 21, 1, leave_mark(client))
    messages(21, range(4, 12))
    assert coverage(client, 21, 1).offsets == {0: 20}


def older_copy(client: Client) -> None:
    """What tells that an older copy has taken the store's place: marks that were left meanwhile are gone."""
    client.command("TRUNCATE TABLE store_marks")


def test_no_checkpoint_of_one_store_gets_into_another(
    client: Client, messages: Callable[[int, range], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages(22, range(10))

    def looked_at_before(*given: Any) -> Watermark:
        found = coverage(*given)
        older_copy(client)
        return found

    monkeypatch.setattr("warehouse.coverage.coverage", looked_at_before)
    checkpoint(client, 22, 1, leave_mark(client))
    assert checkpoints(client, 22) == []


def test_an_older_copy_in_between_is_told(client: Client) -> None:
    with one_store(client):
        coverage(client, 1, 1)
    with pytest.raises(StoreReplaced), one_store(client):
        older_copy(client)
    with pytest.raises(ZeroDivisionError), one_store(client):
        raise ZeroDivisionError


# -- epochs and migrations ---------------------------------------------------------------------------------------------


def test_topics_are_numbered_in_order_once(client: Client) -> None:
    with pytest.raises(UnknownTopic):
        lookup_epoch(client, "first")
    assert [register_epoch(client, topic) for topic in ("first", "first", "second", "first")] == [1, 1, 2, 1]
    with ThreadPoolExecutor(8) as threads:  # sinks that start at once
        assert set(threads.map(lambda _: register_epoch(client, "third"), range(8))) == {3}
    assert epochs(client) == {"first": 1, "second": 2, "third": 3}
    assert lookup_epoch(client, "third") == 3


def test_migrations_run_twice_at_once_and_then_have_nothing_to_do(clickhouse: ClickHouseLocal, unique: str) -> None:
    setting = Settings(clickhouse_dsn=clickhouse.dsn(unique))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: migrate(setting), range(2)))
    assert migrate(setting) == []
    with connect(setting) as client:
        rows = client.query("SELECT name FROM schema_migrations FINAL ORDER BY number").result_rows
        assert [name for (name,) in rows] == [migration.name for migration in migrations()]
        client.command(f"DROP DATABASE {unique} SYNC")


def test_a_changed_migration_is_refused_and_changes_nothing(
    clickhouse: ClickHouseLocal, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Settings(clickhouse_dsn=clickhouse.dsn(unique))
    migrate(setting)
    first, *others = migrations()
    changed = (
        replace(first, text=first.text + "\nCREATE TABLE IF NOT EXISTS extra (a Int8) ENGINE = Null;\n"),
        *others,
    )
    monkeypatch.setattr(migrating, "migrations", lambda: changed)
    with pytest.raises(ChangedMigration, match=first.name):
        migrate(setting)
    with connect(setting) as client:
        assert client.command("EXISTS TABLE extra") == 0
        client.command(f"DROP DATABASE {unique} SYNC")


def test_a_database_migrated_by_the_former_text_has_nothing_to_do(clickhouse: ClickHouseLocal, unique: str) -> None:
    setting = Settings(clickhouse_dsn=clickhouse.dsn(unique))
    migrate(setting)
    with connect(setting) as client:
        client.command("TRUNCATE TABLE schema_migrations")
        former = [
            [migration.number, name, checksum.encode()]
            for migration in migrations()
            for name, checksum in migration.applied_as
            if checksum != migration.checksum
        ]
        assert [row[1] for row in former] == ["0001_usage", "0002_projections", "0007_accepted", "0011_wide_amounts"]
        same = [
            [migration.number, migration.name, migration.checksum.encode()]
            for migration in migrations()
            if len(migration.applied_as) == 1
        ]
        client.insert("schema_migrations", former + same, column_names=["number", "name", "checksum"])
        assert migrate(setting) == []
        client.command(f"DROP DATABASE {unique} SYNC")


def test_a_database_name_that_is_none_is_refused(clickhouse: ClickHouseLocal) -> None:
    with pytest.raises(InvalidDatabaseName):
        migrate(Settings(clickhouse_dsn=f"{clickhouse.dsn()}; DROP DATABASE x".replace(" ", "%20")))


def test_a_server_that_is_away_is_said_to_be(unused_port: int) -> None:
    with pytest.raises(WarehouseUnavailable):
        connect(Settings(clickhouse_dsn=f"http://default@127.0.0.1:{unused_port}/usage"))


@pytest.fixture
def unused_port() -> int:
    from deploy.local.process import free_ports

    return free_ports(1)[0]


# -- finance -----------------------------------------------------------------------------------------------------------


def test_revenue_subtracts_no_credit_note_of_a_void_invoice(client: Client) -> None:
    """What the void invoice billed is not revenue, so what was credited on it is none that went away."""
    organization, at = f"o{secrets.token_hex(4)}", datetime(2026, 4, 1, tzinfo=UTC)
    common: dict[str, Any] = {"organization_id": organization, "customer_id": "c", "currency": "eur", "version": 1}
    for id_, state in (("inv_void", "void"), ("inv_again", "paid")):
        invoice = {
            "id": id_,
            "subscription_id": "s",
            "cycle_start": at,
            "cycle_end": at,
            "issued_at": at,
            "updated_at": at,
            "state": state,
        }
        line = {"invoice_id": id_, "line": 0, "month": at.date(), "amount": Decimal(100), "meter_id": "mtr"}
        note = {
            "id": f"cn_{id_}", "invoice_id": id_, "type": "credit_note", "amount": Decimal(30), "net": Decimal(30),
            "status": "issued", "month": at.date(), "created_at": at,
        }  # fmt: skip
        for table, row in (("stored_invoices", invoice), ("stored_invoice_lines", line), ("stored_adjustments", note)):
            values = {**common, **row}
            client.insert(table, [list(values.values())], column_names=list(values))
    for view in ("finance_revenue", "finance_revenue_by_period"):
        found = client.query(
            f"SELECT net, invoices FROM {view} WHERE organization_id = {{o:String}} ORDER BY net",
            parameters={"o": organization},
        ).result_rows
        assert [tuple(row) for row in found] == [(Decimal(-30), 1), (Decimal(100), 1)], view
