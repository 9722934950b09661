"""Ends of tables → where the first of them stops before the others."""

import pytest

from warehouse.table_ends import Stop, first_stop

EVENTS, VOIDS = "messages of events", "messages of tombstones"
WHOLE = {
    (EVENTS, 1, 0): 50_000, ("usage_events", 1, 0): 50_000, ("usage_accepted", 1, 0): 50_000,
    ("accepted_batches", 1, 0): 50_000, (VOIDS, 1, 0): 40_000, ("usage_voids", 1, 0): 40_000,
}  # fmt: skip
BROKEN = {**WHOLE, (EVENTS, 2, 0): 45_500, ("usage_events", 2, 0): 45_500}  # the log goes on at 45,000 in epoch 2


@pytest.mark.parametrize(("ends", "epochs", "stop"), [
    ({},                                         [(0, 1)],              None),
    (WHOLE,                                      [(0, 1)],              None),
    # The last insert that a table has is read again too.
    ({**WHOLE, ("usage_events", 1, 0): 30_000},  [(0, 1)],              Stop(20_000, "usage_events")),
    ({**WHOLE, ("usage_voids", 1, 0): 10_500},   [(0, 1)],              Stop(500, "usage_voids")),
    ({**WHOLE, ("usage_events", 1, 0): 30_000, ("usage_accepted", 1, 0): 15_000}, [(0, 1)], Stop(5_000, "usage_accepted")),
    # A table that has more than ingest_batches says: coverage is lower, and all are filled from there.
    ({**WHOLE, (EVENTS, 1, 0): 10},              [(0, 1)],              None),
    # An epoch begins in the midst of the log: what the former one had beyond is gone.
    ({**BROKEN, ("usage_accepted", 2, 0): 45_500, ("accepted_batches", 2, 0): 45_500}, [(0, 1), (45_000, 2)], None),
    ({**BROKEN, ("accepted_batches", 2, 0): 45_500}, [(0, 1), (45_000, 2)], Stop(45_000, "usage_accepted")),
    ({**BROKEN, ("usage_events", 1, 0): 30_000}, [(0, 1), (45_000, 2)], Stop(20_000, "usage_events")),
    ({**BROKEN, ("usage_events", 1, 0): 45_000, ("usage_accepted", 2, 0): 45_500, ("accepted_batches", 2, 0): 45_500},
                                                 [(0, 1), (45_000, 2)], None),
])  # fmt: skip
def test_the_first_table_that_ends_early_says_where(
    ends: dict[tuple[str, int, int], int], epochs: list[tuple[int, int]], stop: Stop | None
) -> None:
    assert first_stop(ends, 0, epochs) == stop
