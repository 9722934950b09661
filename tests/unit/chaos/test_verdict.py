"""The count of `make chaos` sees what is lost and what is doubled: a proof that never fails proves nothing."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from tests.chaos import verdict
from tests.chaos.count import Log, Logged, Sum, by_cycle, invoice_total
from tests.chaos.load import Acknowledged, Sent
from tests.chaos.lost_end import times_lost
from tests.receiver import Received

MARCH, APRIL, MAY = (0, 100), (100, 200), (200, 300)


def logged(offset: int, index: int, at: int, value: str, identity: str = "", name: str = "calls") -> Logged:
    return Logged((0, 0, offset, index), "a", name, at, Decimal(value), identity)


LOG = Log(
    events=[
        logged(0, 0, 10, "1", "c:1"),
        logged(0, 1, 110, "2"),
        logged(1, 0, 150, "9", "c:1"),
        logged(2, 0, 99, "4"),
        logged(2, 1, 99, "0.5", name="peak"),
    ]
)


def test_the_first_of_an_identity_counts_in_its_cycle_and_below_a_watermark() -> None:
    assert by_cycle(LOG.firsts(), {"a": [MARCH, APRIL]}) == {
        ("a", "calls", MARCH): Sum(2, Decimal(5), Decimal(4)),
        ("a", "calls", APRIL): Sum(1, Decimal(2), Decimal(2)),
        ("a", "peak", MARCH): Sum(1, Decimal("0.5"), Decimal("0.5")),
    }
    assert by_cycle(LOG.firsts({0: (0, 2)}), {"a": [MARCH]}) == {("a", "calls", MARCH): Sum(1, Decimal(1), Decimal(1))}
    assert by_cycle(LOG.firsts(), {"a": [MAY]}) == by_cycle(LOG.firsts(), {}) == {}


def test_a_batch_that_was_written_twice_counts_once() -> None:
    log = Log([*LOG.events, logged(3, 0, 110, "2")], again={(0, 0, 3)})
    assert list(log.firsts()) == list(LOG.firsts())


def test_lines_are_rounded_once_half_up_and_nothing_is_paid_back() -> None:
    calls = Sum(3, Decimal("124.5"), Decimal(100))
    assert invoice_total(calls, Sum(1, Decimal(1), Decimal("0.01"))) == Decimal("0.03") + Decimal("0.12") + Decimal(
        "0.01"
    )
    assert invoice_total(Sum(3, Decimal(-500), None), Sum()) == Decimal("0.03")


def test_a_tombstone_below_the_watermark_takes_its_event_away_and_no_later_one_takes_its_place() -> None:
    log = Log(LOG.events, voids=[logged(3, 0, 0, "0", "c:1")])
    assert by_cycle(log.firsts(), {"a": [MARCH, APRIL]})["a", "calls", MARCH] == Sum(1, Decimal(4), Decimal(4))
    assert sum(1 for _ in log.firsts()) == sum(1 for _ in log.firsts({0: (0, 3)})) - 1 == 3
    assert list(log.firsts(voided=True)) == list(LOG.firsts())


def acknowledged(*identities: str, ranges: tuple[tuple[int, int, int, int], ...]) -> Any:
    events = tuple(Sent("a", "calls", "", "1", identity) for identity in identities)
    return SimpleNamespace(acknowledged=[Acknowledged(events, ranges)], voids=[])


def test_an_acknowledged_event_that_is_not_in_the_log_is_lost() -> None:
    assert verdict.accepted(acknowledged("c:1", "", ranges=((0, 0, 0, 2),)), LOG).none
    assert verdict.accepted(acknowledged("c:2", ranges=((0, 0, 0, 1),)), LOG).lost == 1
    short = verdict.accepted(acknowledged("", "", ranges=((0, 1, 1, 2),)), LOG)
    assert (short.lost, len(short.wrong)) == (1, 1)
    assert verdict.accepted(acknowledged("", ranges=((0, 7, 7, 1),)), LOG).lost == 1


def test_an_acknowledged_void_that_is_not_in_the_log_is_told() -> None:
    load = SimpleNamespace(acknowledged=[], voids=[("a", "calls", "c:1")])
    assert not verdict.accepted(load, LOG).none  # pyright: ignore[reportArgumentType]
    assert verdict.accepted(load, Log(voids=[logged(3, 0, 0, "0", "c:1")])).none  # pyright: ignore[reportArgumentType]


def test_differences_are_told_apart() -> None:
    found = verdict.Difference()
    found.compare("equal", Sum(2, Decimal(1), None), Sum(2, Decimal(1), None))
    assert found.none
    found.compare("lost", Sum(1, Decimal(1), None), Sum(3, Decimal(1), None))
    found.compare("doubled", Sum(5, Decimal(1), None), Sum(4, Decimal(1), None))
    found.compare("another value", Sum(1, Decimal(1), None), Sum(1, Decimal(2), None))
    assert (found.lost, found.double, len(found.wrong)) == (2, 1, 3)
    assert not found.none


def test_an_alert_that_came_twice_is_in_doubt_only_where_its_sender_was_killed_at_the_first() -> None:
    def got(id_: str, at: float) -> Received:
        return Received("/", {"webhook-id": id_}, "", at)

    once, doubted, late, thrice = got("once", 5), got("doubted", 9.9), got("late", 8), got("thrice", 9.9)
    came = [once, doubted, got("doubted", 14), late, got("late", 14), thrice, got("thrice", 12), got("thrice", 14)]
    assert verdict.repeated(came, [10.0]) == ({"late", "thrice"}, {"doubted"})
    assert verdict.repeated(came, []) == ({"late", "thrice", "doubted"}, set())


def test_offsets_that_a_log_gave_again_are_other_events() -> None:
    """It had offsets 0 to 3, lost 2 and 3 of which 2 was stored, and gave both again."""

    def message(times: int, offset: int, identity: str, *, gone: bool = False) -> Logged:
        return Logged((0, times, offset, 0), "a", "calls", 10, Decimal(1), identity, gone)

    events = [message(0, 1, "c:1"), message(0, 2, "c:2"), message(0, 3, "c:3", gone=True)]
    log = Log([*events, message(1, 2, "c:4"), message(1, 3, "c:3"), message(1, 4, "c:2")])
    assert [event.place[1:3] for event in log.firsts()] == [(0, 1), (0, 2), (1, 2), (1, 3)]
    # A watermark of before covers nothing of what came after, and one of after covers all that came before.
    assert [event.place[1:3] for event in log.firsts({0: (0, 4)})] == [(0, 1), (0, 2)]
    assert [event.place[1:3] for event in log.firsts({0: (1, 3)})] == [(0, 1), (0, 2), (1, 2)]
    assert [event.place[1:3] for event in log.firsts(gone=True)] == [(0, 1), (0, 2), (0, 3), (1, 2)]
    lost = verdict.accepted(acknowledged("c:3", ranges=((0, 3, 3, 1),)), Log(events))
    assert lost.none, "the broker's loss is told by itself"


def test_how_often_a_log_had_lost_its_end_before_a_message() -> None:
    assert [times_lost((80, 60), offset) for offset in (59, 60, 79, 99)] == [0, 2, 2, 2]
    assert [times_lost((60, 80), offset) for offset in (59, 60, 79, 80)] == [0, 1, 1, 2]
