"""Watermarks over epochs: of a topic, and of a partition whose log has lost its end."""

from __future__ import annotations

import pytest

from schemas.watermark import Watermark, from_json, lowest
from warehouse.watermark_sql import below

BEFORE = Watermark(1, {0: 100, 1: 50})
AFTER = Watermark(1, {0: 90, 1: 60}, {0: 2})  # partition 0 lost its end at 80, and goes on


@pytest.mark.parametrize(
    ("epoch", "partition", "offset", "before", "after"),
    [
        (1, 0, 99, True, True),  # stored before the end was lost
        (1, 0, 100, False, True),
        (2, 0, 89, False, True),  # the same offsets, other messages
        (2, 0, 90, False, False),
        (1, 1, 55, False, True),
        (2, 1, 0, False, False),
    ],
)
def test_what_comes_after_a_lost_end_is_above_every_watermark_of_before(
    epoch: int, partition: int, offset: int, before: bool, after: bool
) -> None:
    assert BEFORE.covers(epoch, partition, offset) is before
    assert AFTER.covers(epoch, partition, offset) is after


def test_a_watermark_is_reached_by_one_of_a_later_epoch_whatever_its_offset() -> None:
    assert BEFORE.reached_by(AFTER)
    assert not AFTER.reached_by(BEFORE)
    assert AFTER.reached_by(AFTER)
    assert not BEFORE.reached_by(Watermark(1, {0: 90, 1: 49}, {0: 2}))
    assert BEFORE.reached_by(Watermark(2, {}))
    assert not Watermark(2, {}).reached_by(BEFORE)


def test_as_json_names_epochs_only_where_there_are_any() -> None:
    assert BEFORE.as_json() == {"epoch": 1, "offsets": {"0": 100, "1": 50}}
    assert AFTER.as_json() == {"epoch": 1, "offsets": {"0": 90, "1": 60}, "epochs": {"0": 2}}
    for each in (BEFORE, AFTER):
        assert from_json(each.as_json()) == each


def test_the_lowest_is_below_each_in_every_partition() -> None:
    assert lowest([BEFORE, AFTER]) == Watermark(1, {0: 100, 1: 50})
    assert lowest([AFTER, Watermark(1, {0: 95, 1: 10}, {0: 2})]) == Watermark(1, {0: 90, 1: 10}, {0: 2})


def test_sql_asks_for_epochs_only_where_there_are_any() -> None:
    condition, parameters = below(BEFORE)
    assert "epochs" not in condition
    condition, parameters = below(AFTER)
    assert "greatest({below_epoch:UInt16}, {below_epochs:Array(UInt16)}[kafka_partition + 1])" in condition
    assert parameters == {"below_epoch": 1, "below_offsets": [90, 60], "below_epochs": [2, 0]}
