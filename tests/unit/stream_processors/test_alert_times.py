"""Which alerts are sent: a matter of the log's clock, cycles and rules, whatever the windows in which it was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.view import CatalogView
from schemas.alert_rule import AlertRule, NotSent
from schemas.period import Cycle
from stream_processors.alerts import AlertBook
from stream_processors.moments import Seen
from stream_processors.state import Fired, PartitionState
from stream_processors.tiles import Tiles
from stream_processors.totals import Series, Total
from tests.unit.stream_processors.facts import ORG, Row, batch, customer, meter, rule, us, view_of

HOUR = 3600 * 1_000_000
GRACE = HOUR
MARCH = Cycle(us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z"))
END = MARCH.end_us
Verdicts = dict[tuple[str, str, int], NotSent | None]
Message = tuple[int, list[Row]]
"""received_at, rows."""


def made(name: str, at: int, threshold: str = "10", *, alert_existing: bool = False, past: bool = False) -> AlertRule:
    return rule(name, "calls", threshold).model_copy(
        update={"created_at": at, "alert_existing": alert_existing, "past_cycles": past}
    )


def view(*rules: AlertRule) -> CatalogView:
    return view_of(meter("calls"), customer("a"), customer("b"), *rules)


def verdict(of: AlertRule, at_us: int | None, now: int, *, is_new: bool = False) -> NotSent | None:
    total = Series(ORG, "a", "calls").total(MARCH)
    total.sum = 10**12
    book = AlertBook(view(of), lambda _: GRACE)
    (alert,) = book.due([Seen(total, at_us)], frozenset(), now, is_new=lambda _: is_new)
    return alert.not_sent


@pytest.mark.parametrize(
    ("rule_made", "reached", "new", "flags", "expected"),
    [
        # made           reached             new    flags                     not sent because
        (END - 2 * HOUR, END - HOUR,         False, {},                       None),
        (END - 2 * HOUR, END + GRACE,        False, {},                       None),
        (END - 2 * HOUR, END + GRACE + 1,    False, {},                       NotSent.CYCLE_OVER),
        (END - 2 * HOUR, END + GRACE + 1,    False, {"past": True},           None),
        (END + GRACE,    END - HOUR,         False, {},                       NotSent.ALREADY_REACHED),
        (END + GRACE,    END - HOUR,         False, {"alert_existing": True}, None),
        (END + GRACE + 1, END - HOUR,        False, {},                       NotSent.CYCLE_OVER),
        (END + GRACE + 1, END - HOUR,        False, {"alert_existing": True}, NotSent.CYCLE_OVER),
        (END + GRACE + 1, END - HOUR,        True,  {"past": True},           None),
        (END - 2 * HOUR, None,               True,  {},                       NotSent.ALREADY_REACHED),
        (END - 2 * HOUR, None,               True,  {"alert_existing": True}, None),
        (END - 2 * HOUR, None,               False, {},                       None),  # a subscription made it dearer
    ],
)  # fmt: skip
def test_what_is_sent(
    rule_made: int, reached: int | None, new: bool, flags: dict[str, Any], expected: NotSent | None
) -> None:
    assert verdict(made("r", rule_made, **flags), reached, END - HOUR, is_new=new) == expected


def read(catalog: CatalogView, messages: Sequence[Message], windows: Sequence[int]) -> Verdicts:
    """Fold the messages in, so many between two looks; what fired, and whether it is sent."""
    state = PartitionState(0, "one", Tiles(catalog), horizon_us=10**15, ids_max=10**6, grace_us=lambda _: GRACE)
    state.restored()
    book, found = AlertBook(catalog, lambda _: GRACE), Verdicts()
    sizes = iter(windows)
    while state.next_offset < len(messages):
        some = messages[state.next_offset :][: next(sizes, 1)]
        state.moments.made_at = sorted(
            each.created_at for each in catalog.all(AlertRule) if each.created_at >= state.log_time
        )
        state.apply([(state.next_offset + i, batch(rows, at)) for i, (at, rows) in enumerate(some)])
        for alert in book.due(state.moments.seen(state.totals.changed), state.fired, END):
            key = (alert.rule_id, alert.customer_id, alert.cycle_start)
            assert key not in found
            found[key] = alert.not_sent
            state.note_fired(alert.id, Fired(*key, END))
        state.changes(END)
    return found


ROWS: st.SearchStrategy[Row] = st.tuples(
    st.sampled_from(["a", "b"]),
    st.just("calls"),
    st.sampled_from([MARCH.start_us, END - 1, END]),
    st.sampled_from(["1", "6", "10"]),
    st.just(""),
)
TIMES = [END - HOUR, END, END + GRACE, END + GRACE + 1, END + 2 * GRACE, END - 1, END + GRACE - 1]


@given(
    st.lists(
        st.tuples(st.sampled_from(TIMES), st.lists(ROWS, min_size=1, max_size=2)),
        max_size=8,
    ),
    st.lists(st.integers(1, 8), max_size=8),
    st.lists(st.sampled_from(TIMES), min_size=1, max_size=2),
)
def test_of_usage_that_only_grows_the_same_alerts_are_sent(
    messages: list[Message], windows: list[int], rules_made: list[int]
) -> None:
    catalog = view(*(made(f"r{n}", at) for n, at in enumerate(rules_made)))
    assert read(catalog, messages, windows) == read(catalog, messages, [])


def test_a_year_of_history_sends_nothing() -> None:
    """The months of 2025, sent in 2026, the rule first."""
    months = [us(f"2025-{month:02}-05T00:00:00Z") for month in range(1, 13)]
    history: list[Message] = [(END - HOUR, [("a", "calls", month, "1000", "") for month in months])]
    fired = read(view(made("r", END - 2 * HOUR, "800")), history, [])
    assert len(fired) == 12
    assert set(fired.values()) == {NotSent.CYCLE_OVER}


def test_a_total_is_kept_as_it_was_where_the_clock_decides() -> None:
    """In time it reached the threshold; the late usage that came in the same look does not make that late."""
    messages: list[Message] = [
        (END - HOUR, [("a", "calls", END - 1, "10", "")]),
        (END + GRACE + 1, [("a", "calls", END - 1, "1", ""), ("b", "calls", END - 1, "10", "")]),
    ]
    fired = read(view(made("r", MARCH.start_us)), messages, [2])
    start = MARCH.start_us
    assert fired == {("rule_r", "a", start): None, ("rule_r", "b", start): NotSent.CYCLE_OVER}


def test_a_copy_is_no_total_of_its_series() -> None:
    series = Series(ORG, "a", "calls")
    total = series.total(MARCH)
    copy = total.copy()
    assert isinstance(copy, Total)
    assert series.totals == [total]
