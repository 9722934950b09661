"""Lines of an invoice grouped into at most as many items as Stripe takes: the sum, the order, the time they cover."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_job.stripe import line_groups as groups
from billing_job.stripe.line_groups import ITEMS_MAX, description_of, item_lines, line_groups
from billing_job.stripe.objects import item_params
from ledger.snapshot import Line
from schemas.currency import from_minor
from schemas.period import SECOND_US, parse_rfc3339
from tests.unit.billing_job.stripe.test_objects import fixed

DAY = 86_400 * SECOND_US
JANUARY = parse_rfc3339("2025-01-01T00:00:00Z")


def own(amount_minor: int) -> Line:
    return Line("mtr_1", 0, "per_unit", "Calls", "1", "0", "1", str(from_minor(amount_minor, "eur")), amount_minor)


def late(day: int, amount_minor: int) -> Line:
    start = JANUARY + day * DAY
    line = msgspec.structs.replace(own(amount_minor), meter_id=None, price_index=-1, model="late_usage")
    return msgspec.structs.replace(line, corrects=f"inv_{day}", period_start=start, period_end=start + DAY)


OWN = st.lists(st.builds(own, st.integers(-(10**9), 10**9)), max_size=12)
LATE = st.lists(st.builds(late, st.integers(0, 400), st.integers(-(10**9), 10**9)), max_size=60)


@given(OWN, LATE, st.integers(1, 20))
def test_every_line_is_in_one_item_in_its_order_and_no_item_is_too_many(
    own_lines: list[Line], late_lines: list[Line], items_max: int
) -> None:
    lines = [*own_lines, *late_lines]
    found = line_groups(lines, items_max)
    assert len(found) <= items_max
    assert [index for group in found for index in group] == list(range(len(lines)))
    assert all(before.stop == after.start for before, after in pairwise(found))
    assert found == line_groups(list(lines), items_max), "another run would send other items"


@given(OWN, LATE, st.integers(1, 20))
def test_the_items_add_up_to_the_lines(own_lines: list[Line], late_lines: list[Line], items_max: int) -> None:
    record = msgspec.structs.replace(fixed(), lines=(*own_lines, *late_lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "ITEMS_MAX", items_max)
        made = [item_params(record, index, "in_1", "cus_1") for index in item_lines(record)]
    assert sum(each["amount"] for each in made) == sum(line.amount_minor for line in record.lines)
    assert all(each["period"]["start"] <= each["period"]["end"] for each in made)


# fmt: off
GROUPED = [
    # own, late, size of an item: how many
    (1,   0,   {1: 1}),
    (1,   249, {1: 250}),           # within the limit: a line, an item
    (1,   250, {1: 1, 2: 125}),     # the own line stays alone
    (1,   260, {1: 1, 2: 130}),
    (2,   501, {1: 2, 3: 167}),
    (0,   251, {2: 125, 1: 1}),     # a final invoice has no own lines
    (250, 1,   {2: 125, 1: 1}),     # no room for the late line beside them
    (600, 0,   {3: 200}),
]
# fmt: on


@pytest.mark.parametrize(("own_lines", "late_lines", "sizes"), GROUPED)
def test_no_more_lines_share_an_item_than_must(own_lines: int, late_lines: int, sizes: dict[int, int]) -> None:
    lines = [*(own(1) for _ in range(own_lines)), *(late(day, 1) for day in range(late_lines))]
    found = [len(group) for group in line_groups(lines, ITEMS_MAX)]
    assert {size: found.count(size) for size in found} == sizes


def test_an_item_of_several_lines_says_how_many_and_when() -> None:
    lines = (own(5), *(late(day, 100) for day in range(ITEMS_MAX + 10)))
    record = msgspec.structs.replace(fixed(), lines=lines)
    assert item_params(record, 0, "in_1", "cus_1")["description"] == "Calls"
    params = item_params(record, 3, "in_1", "cus_1")
    assert (params["amount"], params["description"]) == (
        200,
        "Late usage, 2025-01-03 to 2025-01-05 (2 lines, 2 periods)",
    )
    assert params["period"] == {"start": (JANUARY + 2 * DAY) // SECOND_US, "end": (JANUARY + 4 * DAY) // SECOND_US}
    assert params["metadata"] == {"usage_invoice_id": "inv_1", "usage_line": "3", "usage_lines": "2"}


# fmt: off
DESCRIBED = [
    ((late(0, 1), late(0, 2)),    "Late usage, 2025-01-01 to 2025-01-02 (2 lines, 1 period)"),
    ((late(0, 5), late(2, -7)),   "Credit for usage, 2025-01-01 to 2025-01-04 (2 lines, 2 periods)"),
    ((own(1), late(0, 2)),        "Usage and fees, 2025-01-01 to 2026-03-20 (2 lines, 2 periods)"),
]
# fmt: on


@pytest.mark.parametrize(("lines", "description"), DESCRIBED)
def test_descriptions(lines: tuple[Line, ...], description: str) -> None:
    assert description_of(fixed(), lines) == description
