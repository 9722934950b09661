"""Where the sink begins: the lower of commit and coverage, not before the log, never beyond it."""

from __future__ import annotations

import pytest

from stream_processors.log_places import LogTooShort, Start, starting_place

# committed, covered, low, high → start, missing
CASES = [
    (None, 0,  0,  0,  0,  None),      # a new topic
    (None, 0,  0,  9,  0,  None),      # a new group
    (5,    5,  0,  9,  5,  None),      # as it was left
    (5,    9,  0,  9,  5,  None),      # killed between insert and commit
    (9,    5,  0,  9,  5,  None),      # ClickHouse was restored
    (9,    0,  0,  9,  0,  None),      # ClickHouse was wiped
    (None, 5,  0,  9,  5,  None),      # the group was forgotten
    (None, 0,  4,  9,  4,  (0, 4)),    # a new ClickHouse, an old log
    (9,    2,  4,  9,  4,  (2, 4)),    # restored, and too late for some
    (2,    6,  4,  9,  4,  None),      # expired, but stored
    (9,    9,  9,  9,  9,  None),      # all has expired, all was stored
    (None, 0,  9,  9,  9,  (0, 9)),    # all has expired, nothing was stored
]  # fmt: skip


@pytest.mark.parametrize(("committed", "covered", "low", "high", "at", "missing"), CASES)
def test_start(
    committed: int | None, covered: int, low: int, high: int, at: int, missing: tuple[int, int] | None
) -> None:
    assert starting_place(committed, covered, low, high) == Start(at, missing)


@pytest.mark.parametrize(("committed", "covered"), [(10, 10), (9, 10), (None, 10), (0, 10)])
def test_a_log_that_lost_its_end_is_told(committed: int | None, covered: int) -> None:
    with pytest.raises(LogTooShort):
        starting_place(committed, covered, 0, 9)
