"""Repairs between events, through crashes at any record of any write: each is applied once, or refused for good."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import totals as codec
from schemas.repair import RepairReason, UsageRepair, repair_id
from schemas.totals import Progress, UsageTotal, total_key
from stream_processors.state import PartitionState, Record
from tests.unit.stream_processors.facts import ORG, Row, batch
from tests.unit.stream_processors.test_totals import APRIL, BATCHES, MARCH, MAY, Naive, held, naive, numbered, state

Place = tuple[str, str, int]
"""customer_id, event_name, cycle_start."""


def repair_of(
    place: Place, repairs: int = 0, *, count: int = 0, sum_: str = "0", most: str | None = None, was: str | None = None
) -> UsageRepair:
    customer_id, event_name, start = place
    end = APRIL if start == MARCH else MAY
    key = total_key(ORG, customer_id, event_name, start, end)
    return UsageRepair(
        repair_id=repair_id(key, repairs, "one", 0),
        organization_id=ORG,
        customer_id=customer_id,
        event_name=event_name,
        cycle_start=start,
        cycle_end=end,
        repairs=repairs,
        count=count,
        sum=sum_,
        max=most,
        max_was=was,
        topic_id="one",
        partition=2,
        offset=0,
        reason=RepairReason.RECONCILE,
        made_at=0,
    )


PLACES = st.tuples(st.sampled_from("abc"), st.sampled_from(["calls", "bytes"]), st.sampled_from([MARCH, APRIL]))


def that_can_be(repairs: list[UsageRepair]) -> list[UsageRepair]:
    """Each computed from a total that has been, so from one with no more repairs than were applied before it."""
    applied, possible = dict[Place, int](), list[UsageRepair]()
    for repair in repairs:
        place = (repair.customer_id, repair.event_name, repair.cycle_start)
        before = applied.get(place, 0)
        possible.append(repair_of(place, min(repair.repairs, before), count=repair.count, sum_=repair.sum))
        applied[place] = before + (possible[-1].repairs == before)
    return possible


# Many are computed from a state of their total that has passed.
REPAIRS = st.lists(
    st.builds(
        lambda place, repairs, count, sum_: repair_of(place, repairs, count=count, sum_=f"{sum_:f}"),
        PLACES,
        st.integers(0, 3),
        st.integers(-3, 3),
        st.decimals(-5, 5, places=9),
    ),
    max_size=8,
).map(that_can_be)


def repaired(found: Naive, repairs: Sequence[UsageRepair]) -> Naive:
    """One after the other, each if it was computed from as many as there are."""
    result, applied = dict(found), dict[Place, int]()
    for repair in repairs:
        place = (repair.customer_id, repair.event_name, repair.cycle_start)
        if applied.get(place, 0) == repair.repairs:
            applied[place] = repair.repairs + 1
            sum_, count, most = result.get(place, (Decimal(0), 0, None))
            result[place] = (sum_ + Decimal(repair.sum), count + repair.count, most)
    return result


def take_repairs(worker: PartitionState, log: Sequence[UsageRepair], count: int) -> None:
    at = worker.repairs_next or 0
    for offset, repair in enumerate(log[at : at + count], start=at):
        worker.repair(offset, repair)


@settings(max_examples=150, deadline=None)
@given(BATCHES, REPAIRS, st.data())
def test_a_crash_at_any_record_repeats_no_repair(
    batches: list[list[Row]], repairs: list[UsageRepair], data: st.DataObject
) -> None:
    messages, log, worker, crashes = numbered(*map(batch, batches)), list[Record](), state(), 0
    worker.begin_repairs(0)
    while worker.next_offset < len(messages) or (worker.repairs_next or 0) < len(repairs) or worker.has_changes:
        run = data.draw(st.integers(0, 3), "messages")
        worker.apply(messages[worker.next_offset : worker.next_offset + run])
        take_repairs(worker, repairs, data.draw(st.integers(0, 3), "repairs"))
        if not run and crashes > 4:  # so that it ends
            worker.apply(messages[worker.next_offset :])
            take_repairs(worker, repairs, len(repairs))
        records = worker.changes(now=len(log))
        arrived = data.draw(st.integers(0, len(records)), "records that arrive") if crashes < 5 else len(records)
        log += records[:arrived]
        if arrived < len(records) or data.draw(st.booleans(), "crash after the write"):
            worker = state(log=log)
            if worker.repairs_next is None:  # nobody has: the tests begin at the beginning, not at the end
                worker.begin_repairs(0)
            crashes += 1
    expected = repaired(naive(batches), repairs)
    assert held(worker) == expected
    assert held(state(log=log)) == expected


def test_a_repair_is_applied_once_and_only_to_the_total_that_it_was_computed_from() -> None:
    made = state()
    made.apply(numbered(batch([("a", "calls", MARCH, "5", "")])))
    made.begin_repairs(3)
    place = ("a", "calls", MARCH)
    first = repair_of(place, count=2, sum_="1.5")
    assert not made.repair(2, first)  # before what is wanted
    assert made.repair(3, first)
    assert not made.repair(3, first)  # read again
    assert not made.repair(4, first)  # sent again
    assert not made.repair(5, None)  # unreadable
    assert not made.repair(6, repair_of(("b", "calls", MARCH), 1, count=9))
    assert held(made) == {place: (Decimal("6.5"), 3, Decimal(5))}
    assert made.repairs_next == 7
    assert made.repair(7, repair_of(place, 1, count=-3, sum_="-6.5", most=None, was="5"))  # void
    assert made.repair(8, repair_of(("b", "calls", APRIL), count=1, sum_="2", most="2"))
    assert held(made) == {place: (Decimal(0), 0, None), ("b", "calls", APRIL): (Decimal(2), 1, Decimal(2))}
    made.apply(numbered(batch([("b", "calls", APRIL, "1", "")]), start=1))
    again = state(log=made.changes(9))
    assert held(again) == held(made)
    assert again.repairs_next == 9
    assert not again.repair(9, first)


@pytest.mark.parametrize("wrong", [{"sum_": "many"}, {"sum_": "1", "most": "most"}])
def test_a_repair_that_is_no_number_changes_nothing(wrong: dict[str, Any]) -> None:
    restored = state()
    with pytest.raises(ValueError, match="invalid literal"):
        restored.repair(0, repair_of(("a", "calls", MARCH), count=1, **wrong))
    assert (list(restored.totals), restored.repairs_next) == ([], 1)
    assert restored.repair(1, repair_of(("a", "calls", MARCH), count=1, sum_="1"))


def test_a_repair_alone_is_written_with_how_far_repairs_are_taken_in() -> None:
    made = state()
    made.apply(numbered(batch([("a", "calls", MARCH, "5", "")], received_at=4)))
    made.changes(1)
    assert not made.has_changes
    made.begin_repairs(0)
    assert made.repair(0, repair_of(("a", "calls", MARCH), count=1, sum_="-0.5", most="7", was="5"))
    assert made.has_changes
    assert not made.has_new_messages
    (key, value), (_, progress) = made.changes(2)
    assert codec.decode(key, value or b"") == UsageTotal(
        ORG, "a", "calls", MARCH, APRIL, "4.5", 2, "7", "one", 2, 0, 0, 2, 1, "-0.5", 1
    )
    assert msgspec.json.decode(progress or b"", type=Progress) == Progress("one", 2, 1, 4, 2, 1)
    assert not made.has_changes


@pytest.mark.parametrize("late_first", [True, False])
def test_a_frozen_worker_undoes_no_repair(late_first: bool) -> None:
    """It holds an event more and a repair less than what the next owner has written when its own write arrives."""
    rows: list[Row] = [("a", "calls", MARCH, str(number), "") for number in (4, 9, 2)]
    messages, place = numbered(*(batch([row]) for row in rows)), ("a", "calls", MARCH)
    frozen = state()
    frozen.begin_repairs(0)
    frozen.apply(messages[:1])
    log = frozen.changes(1)
    frozen.apply(messages[1:2])
    late = frozen.changes(2)
    owner = state(log=log)
    owner.repair(0, repair_of(place, count=10, sum_="0.25", most="4", was="4"))
    written = owner.changes(3)
    log += [*late, *written] if late_first else [*written, *late]
    expected = {place: (Decimal("13.25"), 12, Decimal(9))}

    third = state(log=log)
    assert (third.next_offset, third.repairs_next, held(third)) == (2, 1, expected)
    # What was not the last record of the total is written again: compaction would keep the other alone.
    third.apply(messages[2:])
    again = third.changes(4)
    assert held(state(log=[log[0], *again])) == {place: (Decimal("15.25"), 13, Decimal(9))}


def test_a_total_that_a_late_write_covers_is_written_again() -> None:
    place = ("a", "calls", MARCH)
    frozen = state()
    frozen.apply(numbered(batch([("a", "calls", MARCH, "1", "")])))
    late = frozen.changes(1)
    owner = state()
    owner.apply(numbered(*[batch([("a", "calls", MARCH, "1", "")])] * 2))
    third = state(log=[*owner.changes(2), *late])
    assert held(third) == {place: (Decimal(2), 2, Decimal(1))}
    third.apply(numbered(batch([("b", "calls", MARCH, "1", "")]), start=2))
    keys = [key for key, _ in third.changes(3)]
    assert total_key(ORG, "a", "calls", MARCH, APRIL) in keys
