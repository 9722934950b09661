"""The fold of columns against a naive fold of events, through crashes at any record of any write."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from catalog.cycles import affected_by
from catalog.view import CatalogView
from schemas import totals as codec
from schemas.meter import Aggregation, Meter
from schemas.repair import RepairReason, UsageRepair
from schemas.totals import (
    BEGUN_KEY,
    INTERNAL,
    PROGRESS_KEY,
    Progress,
    UsageTotal,
    decimal_text,
    partial_key,
    total_key,
    unscaled_of,
)
from schemas.usage_batch import UsageBatch
from stream_processors.state import (
    SMALL_PACKS_MAX,
    Applied,
    Fired,
    OutOfOrder,
    PartitionState,
    Record,
    UnreadableState,
)
from stream_processors.tiles import Tiles
from tests.unit.stream_processors.facts import (
    ORG,
    Row,
    batch,
    customer,
    known,
    meter,
    product,
    put,
    subscription,
    us,
    view_of,
)

MARCH, APRIL, MAY = us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"), us("2026-05-01T00:00:00Z")
FOR_EVER = 10**15
Naive = dict[tuple[str, str, int], tuple[Decimal, int, Decimal | None]]
"""(customer_id, event_name, cycle_start) → sum, count, max."""


def state(view: CatalogView | None = None, topic_id: str = "one", log: Sequence[Record] = ()) -> PartitionState:
    """As a worker has it that has just loaded the log."""
    made = PartitionState(2, topic_id, Tiles(view or known()), horizon_us=FOR_EVER, ids_max=10**6)
    for key, value in log:
        made.restore(key, value)
    made.restored()
    return made


def numbered(*batches: UsageBatch | None, start: int = 0) -> list[tuple[int, UsageBatch | None]]:
    return list(enumerate(batches, start))


def naive(batches: Sequence[Sequence[Row]]) -> Naive:
    """One event at a time, in decimals, in calendar months of UTC."""
    found: Naive = {}
    seen: set[tuple[str, str, str]] = set()
    for customer_id, event_name, t, value, identity in (row for rows in batches for row in rows):
        if identity and (customer_id, event_name, identity) in seen:
            continue
        seen.add((customer_id, event_name, identity))
        key = (customer_id, event_name, MARCH if t < APRIL else APRIL)
        sum_, count, most = found.get(key, (Decimal(0), 0, None))
        number = None if value is None else Decimal(value)
        if number is not None:
            most = number if most is None else max(most, number)
        found[key] = (sum_ + (number or 0), count + 1, most)
    return found


def held(state: PartitionState) -> Naive:
    return {
        (total.series.customer_id, total.series.event_name, total.cycle.start_us): (
            Decimal(decimal_text(total.sum)),
            total.count,
            None if total.max is None else Decimal(decimal_text(total.max)),
        )
        for total in state.totals
    }


def written(log: Sequence[Record]) -> Naive:
    """As a reader of usage.totals has it."""
    newest: dict[bytes, UsageTotal] = {}
    for key, value in log:
        record = None if value is None else codec.decode(key, value)
        if isinstance(record, UsageTotal) and record.supersedes(newest.get(key)):
            newest[key] = record
    return {
        (total.customer_id, total.event_name, total.cycle_start): (
            total.quantity(Aggregation.SUM),
            int(total.quantity(Aggregation.COUNT)),
            None if total.max is None else total.quantity(Aggregation.MAX),
        )
        for total in newest.values()
    }


VALUES = st.one_of(
    st.none(),
    st.sampled_from(["0", "1", "-1", "0.1", "0.2", "999999999999999999.999999999", "-999999999999999999.999999999"]),
    st.decimals(-1000, 1000, places=9).map(lambda value: f"{value:f}"),
)
ROWS: st.SearchStrategy[Row] = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from(["calls", "bytes"]),
    st.integers(MARCH, MAY - 1),
    VALUES,
    st.sampled_from(["", "", "c:1", "c:2", "k:1:0"]),
)
BATCHES = st.lists(st.lists(ROWS, min_size=1, max_size=8), min_size=1, max_size=8)


@settings(deadline=None)
@given(BATCHES, st.lists(st.integers(1, 4), min_size=8, max_size=8))
def test_fold_equals_a_naive_fold(batches: list[list[Row]], runs: list[int]) -> None:
    made, messages = state(), numbered(*map(batch, batches))
    counted = Applied()
    while made.next_offset < len(messages):
        run = runs.pop()
        applied = made.apply(messages[made.next_offset : made.next_offset + run])
        counted = Applied(
            counted.messages + applied.messages,
            counted.events + applied.events,
            counted.duplicates + applied.duplicates,
        )
    assert held(made) == naive(batches)
    assert counted.messages == len(batches)
    assert counted.events == sum(count for _, count, _ in naive(batches).values())
    assert counted.events + counted.duplicates == sum(map(len, batches))


@settings(max_examples=150, deadline=None)
@given(BATCHES, st.data())
def test_a_crash_at_any_record_of_any_write_changes_nothing(batches: list[list[Row]], data: st.DataObject) -> None:
    """A log of writes, each of which may break off; whoever loads it goes on, and comes to the same numbers.

    So also where the topic is made again at any time, and the worker that ran goes on to write what changes.
    """
    messages, log, worker = numbered(*map(batch, batches)), list[Record](), state()
    crashes = 0
    while worker.next_offset < len(messages) or worker.has_changes:
        for _ in range(data.draw(st.integers(1, 3), "runs before the write")):
            run = data.draw(st.integers(1, 3), "messages")
            worker.apply(messages[worker.next_offset : worker.next_offset + run])
        if data.draw(st.integers(0, 4), "0: the topic is made again") == 0:
            log.clear()
        records = worker.changes(now=len(log))
        arrived = data.draw(st.integers(0, len(records)), "records that arrive") if crashes < 5 else len(records)
        log += records[:arrived]
        if arrived < len(records) or data.draw(st.booleans(), "crash after the write"):
            worker = state(log=log)
            crashes += 1
    assert held(worker) == naive(batches)
    last = state(log=log)
    last.apply(messages[last.next_offset :])
    assert held(last) == naive(batches)
    log += last.changes(now=len(log))
    assert written(log) == naive(batches)
    assert held(state(log=log)) == naive(batches)


def test_writes_of_a_frozen_worker_are_only_old() -> None:
    rows: list[Row] = [("a", "calls", MARCH, "1", f"c:{number}") for number in range(6)]
    messages = numbered(*(batch([row]) for row in rows))
    frozen, log = state(), list[Record]()
    frozen.apply(messages[:2])
    log += frozen.changes(1)
    frozen.apply(messages[2:3])
    late = frozen.changes(2)  # it stops before these are sent
    other = state(log=log)
    other.apply(messages[2:])
    log += [*other.changes(3), *late]
    assert written(log) == naive([rows])
    last = state(log=log)
    assert (last.next_offset, held(last)) == (6, naive([rows]))
    assert last.apply(numbered(*(batch([row]) for row in rows), start=6)).duplicates == 6


def test_a_topic_that_was_made_again_starts_at_0_and_counts_on() -> None:
    rows: list[Row] = [("a", "calls", MARCH, "1", ""), ("a", "calls", MARCH, "2", "c:1")]
    first = state(topic_id="one")
    first.apply(numbered(*[batch([row]) for row in rows] * 3))
    log = first.changes(10)
    second = state(topic_id="two", log=log)
    assert second.next_offset == 0
    second.apply(numbered(*[batch([row]) for row in rows]))  # the id is known from before; the event without one counts
    log += second.changes(5)  # even if the clock went back in between
    assert held(second) == {("a", "calls", MARCH): (Decimal(6), 5, Decimal(2))}
    third = state(topic_id="two", log=log)
    assert (third.next_offset, held(third)) == (2, held(second))


def test_only_the_next_message_is_taken() -> None:
    made, one = state(), batch([("a", "calls", MARCH, "1", "")])
    made.apply(numbered(one, one))
    for start in (1, 3):
        with pytest.raises(OutOfOrder):
            made.apply(numbered(one, start=start))
    with pytest.raises(OutOfOrder):
        made.apply([(2, one), (4, one)])
    assert (made.next_offset, held(made)["a", "calls", MARCH][1]) == (2, 2)
    made.skip_to(7)
    assert made.apply(numbered(None, one, start=7)) == Applied(messages=2, events=1, unreadable=1)


def test_writes_what_changed_and_progress_last() -> None:
    made = state()
    made.apply(numbered(batch([("a", "calls", MARCH, "1", "c:1"), ("b", "calls", MARCH, None, "")], received_at=9)))
    made.note_fired("alrt_1", Fired("rule_1", "a", MARCH, 8))
    records = made.changes(11)
    assert [key for key, _ in records[:3]] == [BEGUN_KEY] + [
        total_key(ORG, each, "calls", MARCH, APRIL) for each in "ab"
    ]
    assert records[-1][0] == PROGRESS_KEY
    assert codec.decode(*_whole(records[-1])) == Progress("one", 2, 1, 9, 11)
    assert codec.decode(*_whole(records[2])) == UsageTotal(
        ORG, "b", "calls", MARCH, APRIL, "0", 1, None, "one", 2, 0, 0, 11
    )
    assert len(records) == 6
    assert not made.has_changes
    made.apply(numbered(batch([("a", "calls", APRIL, "1", "")]), start=1))
    assert [key for key, _ in made.changes(12)] == [total_key(ORG, "a", "calls", APRIL, MAY), PROGRESS_KEY]
    again = state(log=records)
    assert (again.fired, again.log_time, again.next_offset) == ({("rule_1", "a", MARCH)}, 9, 1)


def _whole(record: Record) -> tuple[bytes, bytes]:
    key, value = record
    assert value is not None
    return key, value


def test_ids_of_a_write_that_broke_off_call_nothing_a_duplicate() -> None:
    one, two = batch([("a", "calls", MARCH, "1", "c:1")]), batch([("a", "calls", MARCH, "1", "c:2")])
    made = state()
    made.apply(numbered(one))
    log = made.changes(1)
    made.apply(numbered(two, start=1))
    (pack,) = [record for record in made.changes(2) if record[0].startswith(b"\0ids")]
    again = state(log=[*log, pack])
    assert again.apply(numbered(two, one, start=1)) == Applied(messages=2, events=1, duplicates=1)


def test_a_changelog_that_lacks_its_beginning_is_left_and_all_counted_anew() -> None:
    """The topic was made again while a worker ran: what changed afterwards is there, what did not is missing."""
    march, april = batch([("a", "calls", MARCH, "1", "c:1")]), batch([("a", "calls", APRIL, "2", "c:2")])
    worker = state()
    worker.apply(numbered(march))
    worker.changes(1)
    worker.apply(numbered(april, start=1))
    worker.note_fired("alrt_1", Fired("rule_1", "a", APRIL, 8))
    log = worker.changes(2)

    again = state(log=log)
    assert (again.next_offset, held(again), again.repairs_next) == (0, {}, None)
    assert again.fired == {("rule_1", "a", APRIL)}, "it has been sent"
    assert again.has_changes
    assert again.abandoned
    again.apply(numbered(march))
    written = again.changes(3)
    assert written[0] == (PROGRESS_KEY, None)
    for arrived in range(len(written) + 1):  # whatever arrives of the new beginning, the end is right
        third = state(log=[*log, *written[:arrived]])
        third.apply(numbered(march, april)[third.next_offset :])
        assert held(third) == held(worker), arrived
        assert third.next_offset == 2


def test_small_packs_are_joined_and_forgotten_ones_deleted() -> None:
    hour = 3_600_000_000
    made = PartitionState(0, "one", Tiles(known()), horizon_us=hour, ids_max=10**6)
    made.restored()
    log, offset = list[Record](), 0

    def send(count: int, at: int) -> None:
        nonlocal offset
        for _ in range(count):
            row = ("a", "calls", MARCH, "1", f"c:{offset}")
            made.apply(numbered(batch([row], received_at=at), start=offset))
            offset += 1
            log.extend(made.changes(0))

    def live_packs() -> int:
        live: dict[bytes, bytes | None] = {}
        for key, value in log:
            if key.startswith(b"\0ids"):
                live[key] = value
        return sum(value is not None for value in live.values())

    send(3 * SMALL_PACKS_MAX + 10, at=hour)
    assert live_packs() <= SMALL_PACKS_MAX + 3
    again = PartitionState(0, "one", Tiles(known()), horizon_us=hour, ids_max=10**6)
    for record in log:
        again.restore(*record)
    again.restored()
    everything = [batch([("a", "calls", MARCH, "1", f"c:{number}")]) for number in range(offset)]
    assert again.apply(numbered(*everything, start=offset)).duplicates == offset
    send(1, at=3 * hour)
    assert live_packs() == 1


def test_large_packs_fit_into_messages() -> None:
    made = state()
    rows: list[list[Row]] = [
        [("a", "calls", MARCH, "1", f"c:{message}-{number}") for number in range(1000)] for message in range(140)
    ]
    made.apply(numbered(*map(batch, rows)))
    records = made.changes(0)
    assert max(len(value or b"") for _, value in records) < 600_000
    again = state(log=records)
    assert again.apply(numbered(*map(batch, rows), start=140)).duplicates == 140_000


def test_a_catalog_that_changes_moves_later_events_only() -> None:
    view = view_of(meter("calls"), customer("a"), product("p", "calls"))
    made, one = state(view), batch([("a", "calls", us("2026-03-20T00:00:00Z"), "1", "")])
    made.apply(numbered(one))
    affected = affected_by(put(view, subscription("s", "a", "p", "2026-03-15T00:00:00Z")))
    assert affected is not None
    made.totals.forget_tiles(affected)
    made.apply(numbered(one, one, start=1))
    assert {key[2]: count for key, (_, count, _) in held(made).items()} == {
        MARCH: 1,
        us("2026-03-15T00:00:00Z"): 2,
    }


def test_an_unknown_customer_and_an_unmetered_name_have_no_totals() -> None:
    """They did: each misspelled id was a total in memory and on usage.totals, for ever."""
    made = state(view_of(meter("calls"), customer("a")))
    rows: list[Row] = [("nobody", "calls", MARCH, "1", ""), ("a", "unread", MARCH, "2", "c:1")]
    assert made.apply(numbered(batch(rows))) == Applied(messages=1, events=2)
    assert (held(made), len(made.totals)) == ({}, 0)
    assert not [key for key, _ in made.changes(1) if not key.startswith(INTERNAL)]
    assert made.apply(numbered(batch(rows), start=1)).duplicates == 1, "ids are known all the same"


def test_a_customer_counts_from_when_it_is_known_on_and_so_does_a_name() -> None:
    view = view_of()
    made, one = state(view), batch([("a", "calls", MARCH, "1", "")])
    for offset, appears in enumerate([customer("a"), meter("calls"), customer("b")]):
        made.apply(numbered(one, start=offset))
        assert held(made) == {}
        affected = affected_by(put(view, appears))
        assert affected is not None
        made.totals.forget_tiles(affected)
        if isinstance(appears, Meter):
            break
    made.apply(numbered(one, one, start=2))
    assert held(made) == {("a", "calls", MARCH): (Decimal(2), 2, Decimal(1))}


DAY = 86_400_000_000
KEPT = 30 * DAY


def closing(log: list[Record]) -> PartitionState:
    """A worker that has written totals of March and April, and is about to close March."""
    worker = state()
    rows: list[Row] = [("a", "calls", MARCH, "1", ""), ("a", "calls", APRIL, "2", ""), ("b", "calls", MARCH, "3", "")]
    worker.apply(numbered(batch(rows, received_at=APRIL)))
    log += worker.changes(APRIL)
    worker.close_cycles(KEPT)
    assert not worker.has_changes, "the changelog is too young: what is imported into a new system is to be seen"
    worker.apply(numbered(batch([("a", "calls", APRIL, "4", "")], received_at=APRIL + KEPT + DAY), start=1))
    worker.close_cycles(KEPT)
    return worker


def test_cycles_long_closed_leave_memory_and_the_topic_and_late_usage_brings_none_back() -> None:
    """All totals there had ever been stayed in memory and on usage.totals."""
    log = list[Record]()
    worker = closing(log)
    log += worker.changes(APRIL + KEPT + DAY)
    april = {("a", "calls", APRIL): (Decimal(6), 2, Decimal(4))}
    assert held(worker) == held(state(log=log)) == april
    keys = [total_key(ORG, each, "calls", MARCH, APRIL) for each in "ab"]
    assert [(key, value) for key, value in log if key in keys][-2:] == [(key, None) for key in keys]
    for again in (worker, state(log=log)):
        late: list[Row] = [
            ("a", "calls", MARCH, "9", ""),
            ("b", "calls", MARCH, "9", ""),
            ("c", "calls", MARCH, "9", ""),
        ]
        again.apply(numbered(batch(late, received_at=APRIL + KEPT + 2 * DAY), start=2))
        assert held(again) == april, "of late usage alone a total would be wrong"
        again.close_cycles(KEPT)
        assert not again.repair(0, repair_of_march(again))
        assert held(again) == april


def repair_of_march(of: PartitionState) -> UsageRepair:
    return UsageRepair(
        "rep", ORG, "a", "calls", MARCH, APRIL, 0, 1, "1", "1", None, of.topic_id, 2, 0, RepairReason.RECONCILE, 0
    )


@pytest.mark.parametrize("arrived", range(8))
def test_a_crash_while_cycles_are_closed_brings_none_back(arrived: int) -> None:
    log = list[Record]()
    worker = closing(log)
    log += worker.changes(APRIL + KEPT + DAY)[:arrived]
    again = state(log=log)
    row: Row = ("a", "calls", APRIL, "4", "")
    again.apply(numbered(batch([row], received_at=APRIL + KEPT + DAY), start=1)[again.next_offset - 1 :])
    again.close_cycles(KEPT)
    log += again.changes(APRIL + KEPT + DAY)
    assert held(again) == held(state(log=log)) == {("a", "calls", APRIL): (Decimal(6), 2, Decimal(4))}
    assert not state(log=log).has_changes, "every tombstone is written"


def test_a_closed_cycle_that_a_frozen_worker_writes_late_is_deleted_again() -> None:
    log = list[Record]()
    worker = closing(log)
    late = [record for record in log if record[0].startswith(ORG.encode())]
    log += [*worker.changes(APRIL + KEPT + DAY), *late]
    again = state(log=log)
    assert held(again) == {("a", "calls", APRIL): (Decimal(6), 2, Decimal(4))}
    assert {key for key, value in again.changes(0) if value is None} == {
        total_key(ORG, each, "calls", MARCH, APRIL) for each in "ab"
    }


def test_an_organization_has_so_many_series_and_another_is_not_concerned() -> None:
    """One that sent a million customers had the memory of all."""
    view = known()
    put(view, customer("z").model_copy(update={"organization_id": "other"}))
    put(view, meter("calls").model_copy(update={"organization_id": "other"}))
    made = PartitionState(2, "one", Tiles(view), horizon_us=FOR_EVER, ids_max=10**6, series_max=2)
    made.restored()
    rows: list[Row] = [(each, "calls", MARCH, "1", "") for each in "abc"]
    made.apply(numbered(batch(rows), batch(rows), batch([("z", "calls", MARCH, "1", "")], organization_id="other")))
    counts = {key[0]: count for key, (_, count, _) in held(made).items()}
    assert (counts, made.totals.partial, made.newly_partial) == ({"a": 2, "b": 2, "z": 1}, {ORG: 1}, {ORG})
    log = made.changes(1)
    assert not made.newly_partial
    again = PartitionState(2, "one", Tiles(view), horizon_us=FOR_EVER, ids_max=10**6, series_max=2)
    for record in log:
        again.restore(*record)
    again.restored()
    assert (again.totals.partial, again.newly_partial) == ({ORG: 1}, set())

    def is_whole(at: int, number: int) -> bool:
        said = replace(repair_of_march(again), reason=RepairReason.WHOLE, offset=at, customer_id="", event_name="")
        return again.repair(number, said)

    assert not is_whole(0, 0), "one was left out after that place"
    assert is_whole(1, 1)
    assert (again.totals.partial, [r for r in again.changes(2) if r[1] is None]) == ({}, [(partial_key(ORG), None)])


def test_the_last_series_for_which_there_is_room_counts_every_event_of_its_first_batch() -> None:
    made = PartitionState(2, "one", Tiles(known()), horizon_us=FOR_EVER, ids_max=10**6, series_max=1)
    made.restored()
    made.apply(numbered(batch([("a", "calls", MARCH, "1", "")] * 3)))
    assert (held(made), made.totals.partial) == ({("a", "calls", MARCH): (Decimal(3), 3, Decimal(1))}, {})


def test_a_series_without_a_total_takes_no_room() -> None:
    """Late usage of closed cycles did, and the repair of another series was refused again and again."""
    view = known()
    made = PartitionState(2, "one", Tiles(view), horizon_us=FOR_EVER, ids_max=10**6, series_max=1)
    made.restored()
    made.totals.close_cycles(APRIL)
    made.apply(numbered(batch([("a", "calls", MARCH, "1", "")])))
    made.changes(1)
    made.apply(numbered(batch([("b", "calls", APRIL, "1", "")]), start=1))
    assert (held(made), made.totals.partial) == ({("b", "calls", APRIL): (Decimal(1), 1, Decimal(1))}, {})


def test_usage_of_what_is_archived_counts() -> None:
    view = known()
    for gone in (customer("a"), meter("calls")):
        put(view, gone.model_copy(update={"archived": True}))
    made = state(view)
    made.apply(numbered(batch([("a", "calls", MARCH, "1", "")])))
    assert held(made) == {("a", "calls", MARCH): (Decimal(1), 1, Decimal(1))}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"\0ids\0one\0zero\x001\x000", b"\x92\0\xc4\0"),
        (b"\0ids\0one\x000\x001\x000", b"\x92\0\xc4\x01a"),
        (b"\0fired\0alrt", b"{}"),
        (b"\0later", b"{}"),
    ],
)
def test_book_keeping_that_cannot_be_read_is_refused(key: bytes, value: bytes) -> None:
    with pytest.raises(UnreadableState):
        state(log=[(BEGUN_KEY, b"1"), (key, value)])


@given(st.integers(-(10**40), 10**40))
def test_decimal_text_is_exact(unscaled: int) -> None:
    text = decimal_text(unscaled)
    assert unscaled_of(text) == unscaled
    assert Decimal(text).as_integer_ratio() == Decimal(unscaled).scaleb(-9).as_integer_ratio() or abs(unscaled) > 10**28
    assert not ("." in text and text.endswith("0"))
