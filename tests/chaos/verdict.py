"""Totals, ClickHouse, invoices and alerts as they are, beside the independent count → what was lost, and what doubled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import clickhouse_connect
import httpx

from schemas import alert as alert_codec
from schemas import totals as totals_codec
from schemas.alert_rule import alert_id
from schemas.period import parse_rfc3339
from schemas.topics import USAGE_ALERTS, USAGE_TOTALS
from schemas.totals import UsageTotal
from tests.chaos.count import Cycle, Key, Log, Logged, Sum, by_cycle, invoice_total, read_messages
from tests.chaos.load import Load
from tests.chaos.lost_end import Cut, epochs_by_partition, is_stored, stored_ids
from tests.chaos.stack import ADMIN, Stack
from tests.receiver import Received

IN_DOUBT_SECONDS = 0.5  # a request's answer and its record, on a busy machine


@dataclass
class Difference:
    """lost, double: events too few and too many. wrong: what differs, in words, the first few of it."""

    lost: int = 0
    double: int = 0
    wrong: list[str] = field(default_factory=list[str])

    @property
    def none(self) -> bool:
        return not (self.lost or self.double or self.wrong)

    def compare(self, what: str, found: Sum, expected: Sum) -> None:
        self.lost += max(0, expected.count - found.count)
        self.double += max(0, found.count - expected.count)
        if found != expected:
            self.wrong.append(f"{what}: {found}, it should be {expected}")


def accepted(load: Load, log: Log) -> Difference:
    """Every event that was answered 202 is in the log, or was; and its receipt's offsets are, with as many events.

    What the log has lost since is the loss of a broker without replicas: `named` looks whether it is told.
    """
    found = Difference()
    voids = {each.identified for each in log.voids}
    if missing := [void for void in load.voids if void not in voids]:
        found.wrong.append(f"{len(missing)} voids were acknowledged and are not in the log: {missing[:3]}")
    identities = {event.identified for event in log.events if event.identity}
    at = Counter((event.place[0], event.place[2]) for event in log.events)
    for batch in load.acknowledged:
        missing = [e for e in batch.events if e.identity and (e.customer, e.name, e.identity) not in identities]
        found.lost += len(missing)
        for partition, first, last, events in batch.ranges:
            held = sum(at[partition, offset] for offset in range(first, last + 1))
            if held < events:
                found.wrong.append(f"receipt of {events} events at {partition}/{first}-{last}: {held} are there")
                found.lost += 0 if missing else events - held
    return found


def in_totals(stack: Stack, expected: Mapping[Key, Sum]) -> Difference:
    """usage.totals as any reader has it."""
    newest: dict[bytes, UsageTotal] = {}
    for _, _, key, value in read_messages(stack.settings, USAGE_TOTALS):
        assert key is not None
        if value is None:
            newest.pop(key, None)
        elif isinstance(record := totals_codec.decode(key, value), UsageTotal) and record.supersedes(newest.get(key)):
            newest[key] = record
    found = {
        (each.customer_id, each.event_name, (each.cycle_start, each.cycle_end)): Sum(
            each.count, Decimal(each.sum), None if each.max is None else Decimal(each.max)
        )
        for each in newest.values()
    }
    return _differences("live", found, expected)


def in_clickhouse(stack: Stack, log: Log, firsts: list[Logged], cycles: Mapping[str, list[Cycle]]) -> Difference:
    """The view `usage`, and everything accepted by its coordinates."""
    rows = stack.rows(
        "SELECT customer_id, event_name, toUnixTimestamp64Micro(timestamp), value, kafka_epoch, kafka_partition, "
        "kafka_offset, kafka_index FROM usage"
    )
    epochs = epochs_by_partition(stack.rows)
    stored = [
        Logged((p, epochs[p].index(epoch), o, i), customer, name, at, value, "")
        for customer, name, at, value, epoch, p, o, i in rows
    ]
    found = _differences("stored", by_cycle(stored, cycles), by_cycle(firsts, cycles))
    places = {event.place for event in firsts}
    if extra := [event.place for event in stored if event.place not in places]:
        found.wrong.append(f"{len(extra)} events count that are not the first of their identity: {extra[:3]}")
    kept = sum(row[0] for row in stack.rows("SELECT count() FROM usage_accepted FINAL"))
    if kept != len(log.kept):
        found.wrong.append(f"usage_accepted has {kept} of {len(log.kept)} events")
        found.lost += max(0, len(log.kept) - kept)
    rows = stack.rows("SELECT DISTINCT kafka_partition, kafka_epoch, kafka_offset FROM dead_letters")
    letters = {(p, epochs[p].index(epoch), o) for p, epoch, o in rows}
    # One before a lost end may be set aside in both epochs: without an id nothing says that it is the same.
    unreadable = {(p, o) for p, _, o in log.unreadable | log.unreadable_gone}
    if missing := log.unreadable - letters:
        found.wrong.append(
            f"{len(missing)} of {len(log.unreadable)} unreadable messages are no dead letters: {missing}"
        )
    if extra := [letter for letter in letters if (letter[0], letter[2]) not in unreadable]:
        found.wrong.append(f"{len(extra)} dead letters of messages that can be read: {extra[:3]}")
    return found


def stored_of(stack: Stack, cuts: Sequence[Cut]) -> tuple[Callable[[Cut, int], bool], list[str]]:
    """Whether ClickHouse has a message that the log has lost; and what it had when the log lost it, and has no more."""
    client = clickhouse_connect.get_client(dsn=stack.engines[0].dsn("usage"), autogenerate_session_id=False)
    try:
        has = {cut.partition: stored_ids(client, cut.partition) for cut in cuts}
    finally:
        client.close()

    def stored(cut: Cut, offset: int) -> bool:
        # What was stored before must count; what a sink had read and stored afterwards may.
        return cut.had(offset) or is_stored(has[cut.partition], offset, cut.gone[offset])

    wrong = [
        f"ClickHouse had {cut.partition}/{offset} when the log lost it, and has it no more"
        for cut in cuts
        for offset in cut.stored
        if not is_stored(has[cut.partition], offset, cut.gone[offset])
    ]
    return stored, wrong


def named(stack: Stack, cuts: Sequence[Cut]) -> list[str]:
    """What the audit does not say of ends that the log has lost: each is named, at its place or at one before it."""
    said = stack.command("audit", "--json")[1]
    told = json.JSONDecoder().raw_decode(said, said.index("{\n"))[0]["lost_ends"]  # what it logs comes around it
    wrong: list[str] = []
    for partition in {cut.partition for cut in cuts} | {each["partition"] for each in told}:
        starts = [cut.start for cut in cuts if cut.partition == partition]
        by_epoch = sorted((each["epoch"], each["offset"]) for each in told if each["partition"] == partition)
        offsets = [offset for _, offset in by_epoch]
        if len(offsets) != len(starts) or any(said > start for said, start in zip(offsets, starts, strict=True)):
            wrong.append(f"partition {partition} lost its end at {starts}; the audit names {offsets}")
    return wrong


def on_invoices(stack: Stack, documents: list[dict[str, Any]], log: Log) -> Difference:
    """Each invoice holds what lies below its watermark, is one, is paid, and is the same at Stripe."""
    found = Difference()
    at_stripe = stripe_invoices(stack)
    epochs = epochs_by_partition(stack.rows)
    for document in documents:
        customer, cycle = document["customer_id"], _cycle(document)
        below = _places(document["watermark"], epochs)
        expected = by_cycle(log.firsts(below), {customer: [cycle]})
        calls = expected.get((customer, "calls", cycle), Sum())
        peak = expected.get((customer, "peak", cycle), Sum())
        quantity = {line["meter_id"]: Decimal(line["quantity"]) for line in document["lines"]}
        billed = Sum(int(quantity[stack.meters["count"]]), quantity[stack.meters["sum"]], calls.most)
        found.compare(f"invoice of {customer}", billed, calls)
        if quantity[stack.meters["max"]] != (peak.most or 0):
            found.wrong.append(f"invoice of {customer}: max {quantity[stack.meters['max']]}, not {peak.most}")
        total = invoice_total(calls, peak)
        if Decimal(document["total"]) != total:
            found.wrong.append(f"invoice of {customer}: {document['total']}, not {total}")
        theirs = [each for each in at_stripe if each["metadata"].get("usage_customer_id") == customer]
        made = [(each["status"], each["subtotal"]) for each in theirs if each["status"] != "void"]
        if total and made != [("paid", int(total * 100))]:
            found.wrong.append(f"invoice of {customer}: at Stripe {made}, {total} to be paid")
    return found


def fired(stack: Stack) -> set[str]:
    """Ids of all alerts in usage.alerts."""
    return {alert_codec.decode(value).id for _, _, _, value in read_messages(stack.settings, USAGE_ALERTS) if value}


def alerts(stack: Stack, expected: Mapping[Key, Sum], unvoided: Mapping[Key, Sum]) -> tuple[set[str], set[str]]:
    """(missed, raised without reason): ids of alerts. What was reached before a void, was reached.

    Missed is what the merchant's service did not get, whether it was raised or not.
    """
    return _due(stack, expected) - stack.receiver.times.keys(), fired(stack) - _due(stack, unvoided)


def repeated(got: Sequence[Received], killed_at: Sequence[float]) -> tuple[set[str], set[str]]:
    """(repeated, in doubt): ids of alerts that came more than once. killed_at: monotonic seconds.

    In doubt are those whose sender was killed within the moment that it takes to log an answer: nobody can know then
    whether the request was answered, so it is sent again under its id (Standard Webhooks), but no more than once a kill.
    """
    times: dict[str, list[float]] = {}
    for each in got:
        times.setdefault(each.headers["webhook-id"], []).append(each.at)
    more = {id_: sorted(found) for id_, found in times.items() if len(found) > 1}
    in_doubt = {
        id_
        for id_, found in more.items()
        if all(any(at <= kill < at + IN_DOUBT_SECONDS for kill in killed_at) for at in found[:-1])
    }
    return more.keys() - in_doubt, in_doubt


def _due(stack: Stack, totals: Mapping[Key, Sum]) -> set[str]:
    return {
        alert_id(rule, customer, cycle[0])
        for (customer, name, cycle), total in totals.items()
        for rule, threshold in stack.rules.items()
        if name == "calls" and total.count >= threshold
    }


def invoices(stack: Stack) -> list[dict[str, Any]]:
    """All invoices, by the API. Raises httpx.HTTPError."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    answer = httpx.get(f"{stack.address}/api/v1/invoices?limit=500", headers=headers, timeout=20, verify=False)
    answer.raise_for_status()
    return answer.json()["data"]


def stripe_invoices(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    headers, more = {"Authorization": f"Bearer {stack.stripe.api_key}"}, True
    while more:
        query = {"limit": "100", **({"starting_after": found[-1]["id"]} if found else {})}
        answer = httpx.get(f"{stack.stripe.address}/v1/invoices", params=query, headers=headers, timeout=20).json()
        found += answer["data"]
        more = answer["has_more"]
    return found


def _places(watermark: dict[str, Any], epochs: Mapping[int, list[int]]) -> dict[int, tuple[int, int]]:
    """Partition → how often it had lost its end, and next offset. epochs: of each partition, oldest first."""
    own, found = watermark.get("epochs", {}), dict[int, tuple[int, int]]()
    for partition, offset in watermark["offsets"].items():
        numbered = epochs.get(int(partition), [watermark["epoch"]])
        found[int(partition)] = numbered.index(own.get(partition, watermark["epoch"])), offset
    return found


def _cycle(document: dict[str, Any]) -> Cycle:
    return parse_rfc3339(document["cycle"]["start"]), parse_rfc3339(document["cycle"]["end"])


def _differences(where: str, found: Mapping[Key, Sum], expected: Mapping[Key, Sum]) -> Difference:
    difference = Difference()
    for key in found.keys() | expected.keys():
        difference.compare(f"{where} {key}", found.get(key, Sum()), expected.get(key, Sum()))
    return difference
