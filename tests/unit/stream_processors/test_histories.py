"""Random histories through the aggregator's states and their changelog: in the end its totals are the plain fold's.

Duplicates, messages that lie in the log twice, late events, voids, customers, meters and subscriptions made after the usage, crashes at any record of any write, a
changelog made again under a running worker, and a reconciler that sees nothing but what is written. Without voids and changes of the catalog it has nothing to do; with
them, one of its rounds makes everything exact. What is closed has no total; where there is not room for all series, those that are kept are exact in the end, and others
make their organization partial.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from decimal import Decimal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from catalog.cycles import affected_by, tile_at
from catalog.record import CatalogObject
from schemas.meter import Aggregation, Meter
from schemas.period import Cycle
from schemas.repair import RepairReason, UsageRepair, repair_id
from schemas.totals import UsageTotal, decimal_text, total_key
from stream_processors.live_totals import LiveSnapshot, snapshot_of
from stream_processors.reconcile import whole_again
from stream_processors.state import PartitionState, Record
from stream_processors.tiles import Tiles
from tests.unit.stream_processors.facts import (
    ORG,
    Row,
    batch,
    customer,
    meter,
    product,
    put,
    subscription,
    us,
    view_of,
)

CUSTOMERS, NAMES = ("a", "b"), ("calls", "bytes")  # few, so that much happens to each; b and bytes are known later
MARCH, MAY = us("2026-03-01T00:00:00Z"), us("2026-05-01T00:00:00Z")
STARTS = ("2026-03-07T00:00:00Z", "2026-03-15T12:00:00Z", "2026-04-20T00:00:00Z")
SCALE = Decimal(10**9)
DAY = 86_400_000_000
CLOCKS = (us("2026-04-02T00:00:00Z"), us("2026-05-03T00:00:00Z"))

Key = tuple[str, str, Cycle]
Sum = tuple[Decimal, int, Decimal | None]
NOTHING: Sum = (Decimal(0), 0, None)

ROWS: st.SearchStrategy[Row] = st.tuples(
    st.sampled_from(CUSTOMERS),
    st.sampled_from(NAMES),
    st.sampled_from([MARCH, us("2026-03-10T00:00:00Z"), us("2026-04-10T00:00:00Z"), MAY - 1]),
    st.sampled_from([None, "0", "1", "-2.5", "7", "999999999999999999.999999999"]),
    st.sampled_from(["", "c:1", "c:2"]),
)
METERS: tuple[Meter, ...] = (
    meter("count", "calls", Aggregation.COUNT),
    meter("sum", "calls"),
    meter("peak", "calls", Aggregation.MAX),
    meter("bytes", "bytes"),
)


class Histories(RuleBasedStateMachine):
    """One partition. log: of messages, each a hash that it is known by and its events; changelog, repairs: of the two topics; worker: who has the partition now."""

    series_max = 100
    more_rounds = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = 1
        self.view = view_of(customer("a"), meter("first", "calls"), product("p", "first"))
        self.log: list[tuple[int, list[Row]]] = []
        self.voids: set[tuple[str, str, str]] = set()
        self.repairs: list[UsageRepair] = []
        self.changelog: list[Record] = []
        self.known, self.metered = {"a"}, {"calls"}
        self.subscribed: set[str] = set()
        self.unmade = list(METERS)
        self.disturbed = False  # by what is not in the order of the log: there is something to reconcile
        self.worker = self._loaded()

    def _loaded(self) -> PartitionState:
        worker = PartitionState(
            0, "one", Tiles(self.view), horizon_us=10**15, ids_max=10**6, series_max=self.series_max
        )
        for key, value in self.changelog:
            worker.restore(key, value)
        worker.restored()
        if worker.repairs_next is None:
            worker.begin_repairs(len(self.repairs))
        return worker

    # -- what happens --------------------------------------------------------------------------------------------------

    @rule(batches=st.lists(st.lists(ROWS, min_size=1, max_size=5), min_size=1, max_size=3))
    def send(self, batches: list[list[Row]]) -> None:
        self.log += [(_message_hash(len(self.log) + number), rows) for number, rows in enumerate(batches)]

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        if self.log:
            self.log.append(data.draw(st.sampled_from(self.log), "message that is written twice"))

    @rule(events=st.integers(1, 4), repairs=st.integers(0, 4))
    def work(self, events: int, repairs: int) -> None:
        at = self.worker.next_offset
        messages = [
            (at + number, replace(batch(rows, self.clock), message_hash=known_by))
            for number, (known_by, rows) in enumerate(self.log[at : at + events])
        ]
        if messages:
            self.worker.apply(messages)
        begun = self.worker.repairs_next or 0
        for offset, repair in enumerate(self.repairs[begun : begun + repairs], start=begun):
            self.worker.repair(offset, repair)

    def _work_all(self) -> None:
        self.work(len(self.log), len(self.repairs))
        self.changelog += self._changes()

    def _changes(self) -> list[Record]:
        self.worker.close_cycles(DAY)
        return self.worker.changes(1)

    @rule(clock=st.sampled_from(CLOCKS))
    def time_passes(self, clock: int) -> None:
        self.clock = max(clock, self.clock)

    @rule(data=st.data(), dies=st.booleans())
    def write(self, data: st.DataObject, dies: bool) -> None:
        records = self._changes()
        arrived = data.draw(st.integers(0, len(records)), "records that arrive") if dies else len(records)
        self.changelog += records[:arrived]
        if dies:
            self.worker = self._loaded()

    @rule(place=st.tuples(st.sampled_from(CUSTOMERS), st.sampled_from(NAMES), st.sampled_from(["c:1", "c:2"])))
    def void(self, place: tuple[str, str, str]) -> None:
        self.voids.add(place)
        self.disturbed = True

    @rule(who=st.sampled_from(CUSTOMERS), start=st.sampled_from(STARTS))
    def subscribe(self, who: str, start: str) -> None:
        if who not in self.subscribed and who in self.known:
            self.subscribed.add(who)
            self._change(subscription(who, who, "p", start))

    @rule()
    def make_the_changelog_again(self) -> None:
        """While the worker runs, which goes on to write what changes."""
        self.changelog = []

    @rule()
    def make_a_meter(self) -> None:
        if self.unmade:
            made = self.unmade.pop()
            self.metered.add(made.event_name)
            self._change(made)

    @rule()
    def make_a_customer(self) -> None:
        if "b" not in self.known:
            self.known.add("b")
            self._change(customer("b"))

    def _change(self, state: CatalogObject) -> None:
        affected = affected_by(put(self.view, state))
        assert affected is not None
        self.worker.totals.forget_tiles(affected)
        self.disturbed = True

    @rule()
    def reconcile(self) -> None:
        self._reconcile()

    @rule()
    def keep_up(self) -> None:
        """All is counted, reconciled and written, as it is most of the time; then the worker dies."""
        self._work_all()
        self._reconcile()
        self._work_all()
        self.worker = self._loaded()

    # -- the reconciler ------------------------------------------------------------------------------------------------

    def _written(self, snapshot: LiveSnapshot) -> tuple[dict[Key, UsageTotal], int]:
        """What a reader of usage.totals knows: totals, and how far they go."""
        newest = {
            (each.customer_id, each.event_name, Cycle(each.cycle_start, each.cycle_end)): each
            for each in snapshot.totals.values()
        }
        return newest, 0 if snapshot.progress is None else snapshot.progress.next_offset

    def _exact(self, below: int) -> dict[Key, Sum]:
        """The plain fold of what lies below an offset, by the catalog as it is now."""
        found: dict[Key, Sum] = defaultdict(lambda: NOTHING)
        seen: set[tuple[object, ...]] = set()
        for known_by, index, (who, name, at, value, identity) in (
            (known_by, index, row) for known_by, rows in self.log[:below] for index, row in enumerate(rows)
        ):
            place = (who, name, identity)
            known = place if identity else (known_by, index)
            if known in seen:
                continue
            seen.add(known)
            if place in self.voids or who not in self.known or name not in self.metered:
                continue
            for cycle in tile_at(self.view, ORG, who, name, at).cycles:
                sum_, count, most = found[who, name, cycle]
                number = None if value is None else Decimal(value)
                if number is not None:
                    most = number if most is None else max(most, number)
                found[who, name, cycle] = (sum_ + (number or 0), count + 1, most)
        return dict(found)

    def _reconcile(self) -> int:
        """Repairs of all that differs; how many."""
        snapshot = snapshot_of(0, self.changelog)
        written, reached = self._written(snapshot)
        keys = set(written) | {key for key in self._exact(reached) if key[2].end_us > snapshot.closed_before}
        series = {key[:2] for key in written}
        wanted = sorted({key[:2] for key in keys} - series)
        room = max(0, self.series_max - len(series))
        # The first for which there is none is sent all the same, so that the aggregator says so.
        admitted = series | set(wanted[: room if ORG in snapshot.partial else room + 1])
        made = 0
        for key in sorted(keys, key=repr):
            if key[:2] not in admitted:
                continue
            live = written.get(key)
            place = max(reached - 1, -1 if live is None else live.last_offset)
            sum_, count, most = self._exact(place + 1).get(key, NOTHING)
            was = NOTHING if live is None else (Decimal(live.sum), live.count, _decimal(live.max))
            if (sum_, count, most) == was:
                continue
            who, name, cycle = key
            repairs = 0 if live is None else live.repairs
            of = total_key(ORG, who, name, cycle.start_us, cycle.end_us)
            self.repairs.append(
                UsageRepair(
                    repair_id=repair_id(of, repairs, "one", place),
                    organization_id=ORG,
                    customer_id=who,
                    event_name=name,
                    cycle_start=cycle.start_us,
                    cycle_end=cycle.end_us,
                    repairs=repairs,
                    count=count - was[1],
                    sum=_text(sum_ - was[0]),
                    max=None if most is None else _text(most),
                    max_was=None if was[2] is None else _text(was[2]),
                    topic_id="one",
                    partition=0,
                    offset=place,
                    reason=RepairReason.RECONCILE,
                    made_at=0,
                )
            )
            made += 1
        if snapshot.progress is not None:
            left_out = {ORG} if len(wanted) > room else set[str]()
            self.repairs += whole_again(snapshot, left_out, self.repairs[len(self.repairs) - made :], None, 0)
        return made

    # -- what must hold ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """In the end whoever loads the changelog, and goes on, has the plain fold."""
        self.worker = self._loaded()
        self._work_all()
        assert not self._reconcile() or self.disturbed
        self._work_all()
        for _ in range(self.more_rounds):
            self._reconcile()
            self._work_all()
        assert not self._reconcile()
        held = {
            (total.series.customer_id, total.series.event_name, total.cycle): (
                Decimal(total.sum) / SCALE,
                total.count,
                None if total.max is None else Decimal(total.max) / SCALE,
            )
            for total in self.worker.totals
        }
        totals = self.worker.totals
        counted = self._exact(len(self.log))
        expected = {key: total for key, total in counted.items() if key[2].end_us > totals.closed_before}
        assert all(cycle.end_us > totals.closed_before for _, _, cycle in held)
        live = {key[:2] for key in held}
        assert len(live) <= self.series_max
        for key in held.keys() | expected.keys():
            if key[:2] in live or not totals.partial:
                assert held.get(key, NOTHING) == expected.get(key, NOTHING), key


def _message_hash(number: int) -> int:
    """As random as hashes are, and never 0."""
    return (number + 1) * 0x9E37_79B9_7F4A_7C15 % 2**64


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _text(value: Decimal) -> str:
    return decimal_text(int(value * SCALE))


class CrowdedHistories(Histories):
    """There is room for some of the series only. A round may find that room has come only after its repair was refused."""

    series_max = 2
    more_rounds = 2


TestHistories = Histories.TestCase
TestCrowdedHistories = CrowdedHistories.TestCase
for each in (TestHistories, TestCrowdedHistories):
    each.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
del each  # which pytest would take for another
