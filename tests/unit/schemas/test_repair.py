"""usage.repairs: a record comes back as it went in, and a max gives way only to what is known to be newer."""

from __future__ import annotations

import msgspec
import pytest

from schemas.repair import RepairReason, UnreadableRepair, UsageRepair, decode, encode, repair_id, repaired_max
from schemas.totals import UsageTotal, total_key

REPAIR = UsageRepair(
    repair_id="rep_1",
    organization_id="default",
    customer_id="cus_1",
    event_name="calls",
    cycle_start=5,
    cycle_end=9,
    count=-2,
    sum="-0.5",
    max="7",
    max_was="10",
    topic_id="topic",
    partition=3,
    offset=41,
    reason=RepairReason.VOID,
    made_at=11,
    repairs=2,
)


def test_comes_back_as_it_went_in() -> None:
    assert decode(encode(REPAIR)) == REPAIR
    assert REPAIR.key == total_key("default", "cus_1", "calls", 5, 9)


@pytest.mark.parametrize(
    "change",
    [
        {"sum": "much"},
        {"sum": ""},
        {"max": "1e"},
        {"max_was": "x"},
        {"sum": "1.0123456789"},
        {"count": "1"},
        {"reason": "whim"},
        {"offset": None},
    ],
    ids=lambda change: "-".join(f"{name}={value}" for name, value in change.items()),
)
def test_what_is_no_repair_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UnreadableRepair):
        decode(msgspec.json.encode({**msgspec.to_builtins(REPAIR), **change}))


@pytest.mark.parametrize(
    ("current", "seen", "exact", "after"),
    [
        (None, None, None, None),
        (None, None, "7", 7),
        (7, "7", "7", 7),
        (10, "10", "7", 7),  # what was seen is void
        (10, "10", None, None),  # and nothing is left
        (12, "10", "7", 12),  # a greater one came after the place
        (5, "7", "9", 9),
        (5, None, "3", 5),
        (5, None, None, 5),
        (-3, "-3", "-4", -4),
    ],
)
def test_max_after_a_repair(current: int | None, seen: str | None, exact: str | None, after: int | None) -> None:
    scale = 10**9
    repair = msgspec.structs.replace(REPAIR, max=exact, max_was=seen)
    found = repaired_max(None if current is None else current * scale, repair)
    assert found == (None if after is None else after * scale)


def test_an_id_stands_for_one_state_of_a_total() -> None:
    key = REPAIR.key
    assert repair_id(key, 2, "topic", 41) == repair_id(key, 2, "topic", 41)
    others = {repair_id(key, 3, "topic", 41), repair_id(key, 2, "new", 41), repair_id(key, 2, "topic", 42)}
    others.add(repair_id(total_key("default", "cus_2", "calls", 5, 9), 2, "topic", 41))
    assert len(others | {repair_id(key, 2, "topic", 41)}) == 5


def test_of_totals_at_one_offset_the_one_with_more_repairs_is_newer() -> None:
    def total(last_offset: int, repairs: int) -> UsageTotal:
        return UsageTotal("o", "c", "e", 0, 1, "1", 1, None, "t", 0, 0, last_offset, 0, repairs)

    assert total(4, 1).supersedes(total(4, 0))
    assert not total(4, 0).supersedes(total(4, 1))
    assert total(5, 0).supersedes(total(4, 1))
