"""seed, seconds → a stack under load and under faults, then what an independent count says of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median

import httpx
from confluent_kafka import KafkaException

from tests.chaos import verdict
from tests.chaos.count import Logged, by_cycle, read_log
from tests.chaos.faults import Bench, Fault, NotRecovered, next_fault
from tests.chaos.load import Load
from tests.chaos.lost_end import Cut
from tests.chaos.recovery import Monitor
from tests.chaos.stack import GRACE_SECONDS, Part, Stack
from tests.chaos.verdict import Difference

CUSTOMERS_PER_MINUTE = 20
_TICK_SECONDS = 0.02
_SETTLE_SECONDS_MAX = 150.0
_WARM_UP_SECONDS = 3.0


@dataclass
class Report:
    """What a run came to. ok: nothing lost, nothing doubled, no alert missed, and every part worked again."""

    seed: int
    seconds: float
    faults: Counter[str] = field(default_factory=Counter[str])
    accepted: int = 0
    duplicates: int = 0
    batches_again: int = 0
    voids: int = 0
    unreadable: int = 0
    ends_lost: int = 0
    gone: int = 0
    gone_but_stored: int = 0
    retries: int = 0
    invoices: int = 0
    ingest: Difference = field(default_factory=Difference)
    live: Difference = field(default_factory=Difference)
    clickhouse: Difference = field(default_factory=Difference)
    billing: Difference = field(default_factory=Difference)
    alerts: int = 0
    alerts_missed: set[str] = field(default_factory=set[str])
    alerts_untrue: set[str] = field(default_factory=set[str])
    alerts_repeated: set[str] = field(default_factory=set[str])
    alerts_in_doubt: set[str] = field(default_factory=set[str])
    recoveries: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    after_kills_alone: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    ended_by_themselves: Counter[str] = field(default_factory=Counter[str])
    problems: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        parts = (self.ingest, self.live, self.clickhouse, self.billing)
        alerts_wrong = self.alerts_missed or self.alerts_untrue or self.alerts_repeated
        return all(part.none for part in parts) and not (alerts_wrong or self.problems)

    def lines(self) -> list[str]:
        """As it is printed."""
        named = (
            ("ingest", self.ingest),
            ("live totals", self.live),
            ("ClickHouse", self.clickhouse),
            ("invoices", self.billing),
        )
        faults = ", ".join(f"{count} × {name}" for name, count in sorted(self.faults.items()))
        lines = [
            f"seed {self.seed}: {'ok' if self.ok else 'FAILED'}, {self.seconds:.0f} s, {sum(self.faults.values())} faults",
            f"  faults: {faults}",
            f"  accepted {self.accepted} ({self.duplicates} duplicates among them, {self.batches_again} batches written "
            f"twice), {self.voids} voids, "
            f"{self.unreadable} unreadable messages, {self.retries} retries, {self.invoices} invoices",
            f"  {self.ends_lost} ends of the log lost, all named; with them {self.gone_but_stored} events that were stored and "
            f"count, and {self.gone} that the broker alone had",
            *(f"  {name}: lost {each.lost}, double-counted {each.double}" for name, each in named),
            f"  alerts: {self.alerts} due, missed {len(self.alerts_missed)}, repeated {len(self.alerts_repeated)}, "
            f"without reason {len(self.alerts_untrue)}, sent again after a kill in mid-request {len(self.alerts_in_doubt)}",
            *(f"  recovery of {kind}: {_spread(found)}" for kind, found in sorted(self.recoveries.items())),
            *(
                f"  recovery of {kind} from a kill with nothing else broken: {_spread(found)}"
                for kind, found in sorted(self.after_kills_alone.items())
            ),
        ]
        if self.ended_by_themselves:
            lines.append(f"  ended by themselves and were started again: {dict(self.ended_by_themselves)}")
        wrong = [text for _, each in named for text in each.wrong[:10]] + self.problems
        return lines + [f"  ! {text}" for text in wrong]


def _spread(seconds: Sequence[float]) -> str:
    return f"median {median(seconds):.1f} s, max {max(seconds):.1f} s of {len(seconds)}"


@dataclass(slots=True)
class _UnderWay:
    """A fault that goes on. alone: no other has been at any time of it; wakes_at: monotonic seconds."""

    name: str
    parts: list[Part]
    fault: Fault
    alone: bool
    wakes_at: float = 0.0


def run(
    seed: int,
    seconds: float,
    directory: Path,
    say: Callable[[str], None] = print,
    only: frozenset[str] = frozenset(),
    shards: int = 1,
) -> Report:
    """Break a stack for so long, then count. directory: for data and logs. only: names of faults; empty: all.

    shards: ClickHouse servers that share usage.
    """
    report = Report(seed, seconds)
    customers = max(4, int(CUSTOMERS_PER_MINUTE * seconds / 60))
    with Stack(directory, customers, seconds, shards) as stack:
        load, monitor = Load(stack, seed), Monitor(stack.settings)
        bench = Bench(stack, load, monitor, random.Random(seed), only=only)
        monitor.start()
        load.start()
        try:
            _break(bench, report, seconds, say)
            load.stopping.set()
            _settle(bench, report)
        except (NotRecovered, KafkaException) as error:
            report.problems.append(str(error))
        finally:
            load.stopping.set()
            monitor.stop()
        report.recoveries = bench.recoveries
        for part in stack.parts:
            if part.ended_by_itself:
                report.ended_by_themselves[part.kind] += part.ended_by_itself
        if not report.problems:
            _count(bench, report)
    return report


def _break(bench: Bench, report: Report, seconds: float, say: Callable[[str], None]) -> None:
    """Faults at random instants, one at a time mostly, until the time is over; returns with all of them over."""
    stack, rnd, began = bench.stack, bench.random, time.monotonic()
    running: list[_UnderWay] = []
    next_at = began + _WARM_UP_SECONDS
    while (now := time.monotonic()) < began + seconds or running:
        stack.keep()
        for each in list(running):
            if now < each.wakes_at:
                continue
            try:
                each.wakes_at = time.monotonic() + next(each.fault)
            except StopIteration as end:
                running.remove(each)
                for part in each.parts:
                    part.broken = False
                if each.alone and each.name.startswith("kill"):
                    report.after_kills_alone.setdefault(each.parts[0].kind, []).append(end.value)
                next_at = min(next_at, time.monotonic() + rnd.uniform(0, 2))
        if now >= next_at and now < began + seconds and (begun := next_fault(bench)) is not None:
            name, parts, fault = begun
            say(f"  {now - began:6.1f} s  {name}")
            report.faults[name] += 1
            for part in parts:
                part.broken = True
            for each in running:
                each.alone = False
            running.append(_UnderWay(name, parts, fault, alone=not running))
            # The next one comes when this is over, or in its middle.
            next_at = now + rnd.uniform(0.2, 4) if rnd.random() < 0.3 else inf
        time.sleep(_TICK_SECONDS)


def _settle(bench: Bench, report: Report) -> None:
    """All that was sent is counted and stored, and what is due is paid."""
    stack, monitor = bench.stack, bench.monitor
    deadline = time.monotonic() + _SETTLE_SECONDS_MAX
    due = {customer for customer, end in stack.ends.items() if end.timestamp() + GRACE_SECONDS < time.time()}

    def wait_until(condition: Callable[[], bool], what: str) -> None:
        while not condition():
            stack.keep()
            if time.monotonic() > deadline:
                raise NotRecovered(f"{what} within {_SETTLE_SECONDS_MAX:g} s of the last fault")
            time.sleep(0.1)

    wait_until(lambda: not bench.load.running, "the producers did not end")
    stopped = time.monotonic()
    wait_until(lambda: monitor.answered > stopped + 1, "the broker did not answer")
    aim = dict(monitor.ends)
    wait_until(lambda: monitor.totals_have(aim), f"totals stand at {monitor.totals} of {aim}: not all was counted")
    wait_until(lambda: monitor.stored_has(aim), f"ClickHouse has {monitor.stored} of {aim}: not all was stored")

    def paid() -> bool:
        try:
            found = verdict.invoices(stack)
        except httpx.HTTPError:
            return False
        states = Counter(each["state"] for each in found)
        report.invoices = len(found)
        return {each["customer_id"] for each in found} >= due and set(states) <= {"paid"}

    wait_until(paid, "not all invoices were paid")
    raised = verdict.fired(stack)
    wait_until(lambda: stack.receiver.times.keys() >= raised, "not all alerts were sent to the webhook")
    # What the product says of itself must be the same: every event in one class, live totals equal to what is stored.
    # After voids they are so once they are reconciled.
    said = (1, "")

    def balances() -> bool:
        nonlocal said
        said = stack.command("audit")
        return said[0] == 0

    try:
        wait_until(balances, "`audit` did not balance")
    except NotRecovered as error:
        raise NotRecovered(f"{error}: {said[1][-1500:]}") from None


def _count(bench: Bench, report: Report) -> None:
    stack, load = bench.stack, bench.load
    stored, wrong = verdict.stored_of(stack, bench.cuts)
    log = read_log(stack.settings, bench.poison, bench.cuts, stored)
    cycles = {customer: list(stack.cycles(customer)) for customer in stack.customers}
    firsts = list(log.firsts())
    expected = by_cycle(firsts, cycles)
    reached = by_cycle(log.firsts(voided=True, gone=True), cycles)
    report.accepted, report.retries, report.voids = load.events, load.retries, len(log.voids)
    report.duplicates, report.unreadable = len(log.kept) - len(list(log.firsts(voided=True))), len(log.unreadable)
    report.ends_lost, report.gone = len(bench.cuts), len(log.gone)
    report.gone_but_stored = len([event for event in log.kept if _was_cut(event, bench.cuts)])
    report.problems += wrong + verdict.named(stack, bench.cuts)
    report.batches_again = len(log.again)
    report.problems += [f"the gateway refused a batch: {text}" for text in load.refused[:3]]
    report.ingest = verdict.accepted(load, log)
    report.live = verdict.in_totals(stack, expected)
    report.clickhouse = verdict.in_clickhouse(stack, log, firsts, cycles)
    documents = verdict.invoices(stack)
    report.invoices = len(documents)
    report.billing = verdict.on_invoices(stack, documents, log)
    report.alerts = sum(
        total.count >= threshold
        for (_, name, _), total in expected.items()
        for threshold in stack.rules.values()
        if name == "calls"
    )
    report.alerts_repeated, report.alerts_in_doubt = verdict.repeated(stack.receiver.got, stack.gateway.killed_at)
    report.alerts_missed, report.alerts_untrue = verdict.alerts(stack, expected, reached)


def _was_cut(event: Logged, cuts: Sequence[Cut]) -> bool:
    partition, times, offset, _ = event.place
    later = [cut for cut in cuts if cut.partition == partition][times:]
    return any(offset >= cut.start for cut in later)
