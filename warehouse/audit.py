"""ClickHouse below a watermark → the class of every accepted event, whether all of it adds up, and where it does not.

Two counts that share nothing but the watermark: what was accepted (usage_accepted, a row for each coordinate) with what
of it is a duplicate; and what counts (usage_events), each event in one class. A third, by message, holds both to
ingest_batches. A customer never leaves its partition, so partitions are asked one at a time, and memory holds a share
of one.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from schemas import usage_batch
from schemas.decimals import decimal_text, exact
from schemas.partition import partition_of
from schemas.subscription import Subscription
from schemas.watermark import Watermark, from_json
from warehouse.audit_windows import (
    AuditedInvoice,
    AuditedSubscription,
    EventClass,
    windows,
)
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.coverage import EARLIER_EPOCH, EXPIRED
from warehouse.places import IDENTITY_HASH_SQL, ORDER_SQL, Place, place_of
from warehouse.shards import Shards, Store, shards_of
from warehouse.watermark_sql import below, not_voided

LISTED_MAX = 20
# About 250 bytes a group are held; a partition of more rows is taken in shares.
_ROWS_AT_ONCE = 2_000_000
_STAGED_AT_ONCE = 100_000

_SCOPE = "kafka_partition = {partition:UInt16} AND BELOW AND ORGANIZATION"

# A group is an identity: all that was accepted of it, and all rows that are stored of it, merged or not. Where values
# are compared, none is told from 0.
# Pairs of expressions: a tuple of bare columns has names in ClickHouse 24.8, and is read as a dict.
_IDENTITIES = f"""
    SELECT
        organization,
        sum(accepted), sum(accepted_value),
        sumIf(accepted - 1, accepted > 0), sum(accepted_value - if(accepted > 0, first_value, 0)),
        countIf(accepted > 1 AND least_value != greatest_value),
        groupArraySortedIf(LISTED)((toUInt64(first_accepted), toUInt64(last_accepted)), accepted > 1),
        groupArraySortedIf(LISTED)(
            (toUInt64(first_accepted), toUInt64(last_accepted)), accepted > 1 AND least_value != greatest_value),
        FAULTS
    FROM
    (
        SELECT
            any(of_organization) AS organization,
            countIf(is_accepted) AS accepted,
            countIf(NOT is_accepted) AS stored,
            sumIf(amount, is_accepted) AS accepted_value,
            argMinIf(amount, place, is_accepted) AS first_value,
            argMinIf(valueless, place, is_accepted) AS first_valueless,
            minIf((amount, valueless), is_accepted) AS least_value,
            maxIf((amount, valueless), is_accepted) AS greatest_value,
            minIf(place, is_accepted) AS first_accepted,
            maxIf(place, is_accepted) AS last_accepted,
            minIf(place, NOT is_accepted) AS first_stored,
            argMinIf(amount, place, NOT is_accepted) AS stored_value,
            argMinIf(valueless, place, NOT is_accepted) AS stored_valueless
        FROM
        (
            SELECT
                organization_id AS of_organization, identity_hash AS identity_of, {ORDER_SQL} AS place,
                ifNull(value, 0::Decimal(38, 9)) AS amount, isNull(value) AS valueless, 1 AS is_accepted
            FROM usage_accepted FINAL
            WHERE {_SCOPE} AND identity_hash % {{shares:UInt32}} = {{share:UInt32}}
            UNION ALL
            SELECT
                organization_id,
                {IDENTITY_HASH_SQL} AS hash,
                {ORDER_SQL},
                ifNull(value, 0::Decimal(38, 9)), isNull(value), 0
            FROM usage_events
            WHERE {_SCOPE} AND hash % {{shares:UInt32}} = {{share:UInt32}}
        )
        GROUP BY identity_of
    )
    GROUP BY organization
"""
# kind → condition on a group, its place and what it is worth.
_FAULTS: dict[str, tuple[str, str, str]] = {
    "row lost": ("accepted > 0 AND stored = 0", "first_accepted", "-first_value"),
    "first row lost": (
        "accepted > 0 AND stored > 0 AND first_stored > first_accepted", "first_accepted", "stored_value - first_value",
    ),
    "row never accepted": ("accepted = 0", "first_stored", "stored_value"),
    "acceptance lost": (
        "accepted > 0 AND stored > 0 AND first_stored < first_accepted", "first_stored", "stored_value - first_value",
    ),
    "value changed": (
        "accepted > 0 AND first_stored = first_accepted"
        " AND (stored_value, stored_valueless) != (first_value, first_valueless)",
        "first_accepted", "stored_value - first_value",
    ),
}  # fmt: skip

_CLASSES = f"""
    SELECT organization_id, class, count(), sum(ifNull(value, 0::Decimal(38, 9)))
    FROM
    (
        SELECT
            organization_id,
            value,
            multiIf(
                NOT counts, {EventClass.VOIDED:d},
                NOT matched, {EventClass.UNMATCHED:d},
                empty(classes), {EventClass.UNPRICED:d},
                arrayMin(classes)
            ) AS class
        FROM
        (
            SELECT
                event.organization_id AS organization_id,
                event.value AS value,
                event.counts AS counts,
                event.matched AS matched,
                arrayMap(
                    w -> toUInt8(multiIf(
                        event.place < w.3, w.5,
                        event.place < w.4, {EventClass.TRUED_UP:d},
                        w.6)),
                    arrayFilter(w -> event.at >= w.1 AND event.at < w.2, priced.spans)
                ) AS classes
            FROM
            (
                SELECT
                    organization_id, customer_id, event_name, value,
                    toUnixTimestamp64Micro(timestamp) AS at,
                    {ORDER_SQL} AS place,
                    NOT_VOIDED AS counts,
                    (organization_id, event_name) IN (SELECT organization_id, event_name FROM stored_meters)
                        AND (organization_id, customer_id) IN
                            (SELECT organization_id, id FROM stored_customers) AS matched
                FROM usage_events FINAL
                WHERE {_SCOPE}
            ) AS event
            LEFT JOIN
            (
                SELECT
                    organization_id, customer_id, event_name,
                    groupArray((start_us, end_us, billed_below, trued_below, class_billed, class_late)) AS spans
                FROM audit_windows
                WHERE request_id = {{request_id:UUID}} AND NOT throwIf(
                        (SELECT count() FROM audit_windows WHERE request_id = {{request_id:UUID}}) != {{staged:UInt64}},
                        'the node that answers does not have the windows of the audit'
                    )
                    AND (organization_id, customer_id) IN (
                        SELECT organization_id, customer_id FROM usage_events
                        WHERE kafka_partition = {{partition:UInt16}}
                    )
                GROUP BY organization_id, customer_id, event_name
            ) AS priced
            ON event.organization_id = priced.organization_id
                AND event.customer_id = priced.customer_id
                AND event.event_name = priced.event_name
        )
    )
    GROUP BY organization_id, class
"""
# A message was stored whole: its events, and what they sum up to, are those that ingest_batches says.
_MESSAGES = """
    SELECT kafka_epoch, kafka_offset, told, found, told_value, found_value
    FROM
    (
        SELECT
            kafka_epoch, kafka_offset,
            sumIf(events, is_told) AS told, countIf(NOT is_told) AS found,
            sumIf(amount, is_told) AS told_value, sumIf(amount, NOT is_told) AS found_value
        FROM
        (
            SELECT kafka_epoch, kafka_offset, events, value_sum AS amount, 1 AS is_told
            FROM ingest_batches FINAL WHERE kafka_partition = {partition:UInt16} AND BELOW
            UNION ALL
            SELECT kafka_epoch, kafka_offset, 0, ifNull(value, 0::Decimal(38, 9)), 0
            FROM usage_accepted FINAL WHERE kafka_partition = {partition:UInt16} AND BELOW
        )
        GROUP BY kafka_epoch, kafka_offset
    )
    WHERE told != found OR told_value != found_value
    ORDER BY kafka_epoch, kafka_offset
    LIMIT LISTED
"""
# What the log deleted before anyone had read it: whose it was, and how much, nobody knows any more.
_LOST_ENDS = """
    SELECT kafka_epoch, kafka_partition, max(next_offset)
    FROM ingest_batches WHERE reason = {reason:String} AND OWN
    GROUP BY kafka_epoch, kafka_partition ORDER BY kafka_epoch
"""
_EXPIRED = """
    SELECT kafka_epoch, kafka_partition, kafka_offset, max(next_offset)
    FROM ingest_batches WHERE reason = {reason:String} AND BELOW AND OWN
    GROUP BY kafka_epoch, kafka_partition, kafka_offset
    ORDER BY kafka_epoch, kafka_partition, kafka_offset
    LIMIT LISTED
"""


@dataclass(frozen=True, slots=True)
class Tally:
    """events: how many. value: Σ of those that have one."""

    events: int = 0
    value: Decimal = Decimal(0)

    @property
    def text(self) -> str:
        """The value without trailing zeros."""
        return decimal_text(self.value)

    @exact
    def __add__(self, other: Tally) -> Tally:
        return Tally(self.events + other.events, self.value + other.value)


@dataclass(frozen=True, slots=True)
class Fault:
    """Where it does not add up. organization_id empty: of whole messages. tally: how many identities (or events), and
    what they add to what there should be; nothing where that is not known. places: where the first of them lie,
    ascending; of messages that expired the first and the last of each run. detail: what no place says."""

    kind: str
    organization_id: str
    tally: Tally
    places: tuple[Place, ...]
    detail: str = ""

    def __str__(self) -> str:
        if self.detail:
            return f"{self.kind}{f' of {self.organization_id}' if self.organization_id else ''}: {self.detail}"
        at = ", ".join("/".join(map(str, place)) for place in self.places)
        whose = f" of {self.organization_id}" if self.organization_id else ""
        known = f"{self.tally.events} events, value {self.tally.text}, " if self.tally != Tally() else ""
        return f"{self.kind}{whose}: {known}at {at}"


@dataclass(frozen=True, slots=True)
class Conservation:
    """One organization's events below the watermark. accepted = Σ classes, or it does not balance.

    conflicts: identities whose duplicates have another value. duplicates_at, conflicts_at: (first, last) of the first
    few of them.
    """

    organization_id: str
    accepted: Tally = Tally()
    classes: dict[EventClass, Tally] = field(default_factory=dict[EventClass, Tally])
    conflicts: int = 0
    duplicates_at: tuple[tuple[Place, Place], ...] = ()
    conflicts_at: tuple[tuple[Place, Place], ...] = ()

    @property
    def accounted(self) -> Tally:
        return sum(self.classes.values(), Tally())

    @property
    def balances(self) -> bool:
        return self.accepted == self.accounted


@dataclass(frozen=True, slots=True)
class LostEnd:
    """A partition's log had lost its end: from `offset` on, its messages are of this epoch. What had been acknowledged
    beyond it counts where it was stored before; what was not stored is gone, and nobody knows how much that is."""

    epoch: int
    partition: int
    offset: int

    def __str__(self) -> str:
        return (
            f"the log of partition {self.partition} lost its end and went on at offset {self.offset}, epoch "
            f"{self.epoch}: events acknowledged beyond that and not stored yet are gone"
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """unreadable: messages set aside whose events no one can count. lost_ends: named, since no count can miss what
    nobody has. seconds: what it took."""

    watermark: Watermark
    organizations: tuple[Conservation, ...]
    faults: tuple[Fault, ...]
    unreadable: int = 0
    seconds: float = 0.0
    lost_ends: tuple[LostEnd, ...] = ()

    def with_faults(self, faults: Iterable[Fault]) -> Audit:
        """With what was found elsewhere."""
        return replace(self, faults=(*self.faults, *faults))

    @property
    def ok(self) -> bool:
        return not self.faults and all(each.balances for each in self.organizations)


def audit(store: Store, watermark: Watermark, partitions: int, organization_id: str | None = None) -> Audit:
    """Everything below the watermark, of one organization or (None) of all. partitions: of usage.events.

    Each is asked of the shard that has it.

    Raises WarehouseUnavailable.
    """
    started = time.monotonic()
    try:
        made = _Audit(shards_of(store), watermark, organization_id)
        made.stage_windows(partitions)
        for partition in range(partitions):
            made.count_identities(partition)
            made.count_classes(partition)
            if organization_id is None:
                made.compare_messages(partition)
        made.count_dead_letters()
        made.find_expired()
        made.find_lost_ends()
    except ClickHouseError as error:
        raise unavailable(error) from error
    return made.result(time.monotonic() - started)


class _Audit:
    """What is known so far, by organization."""

    def __init__(self, shards: Shards, watermark: Watermark, organization_id: str | None) -> None:
        self._shards = shards
        self._watermark = watermark
        self._organization_id = organization_id
        self._condition, self._parameters = below(watermark)
        self._request_id = uuid.uuid4()
        self._accepted: dict[str, Tally] = defaultdict(Tally)
        self._classes: dict[str, dict[EventClass, Tally]] = defaultdict(lambda: defaultdict(Tally))
        self._conflicts: dict[str, int] = defaultdict(int)
        self._duplicates_at: dict[str, list[tuple[Place, Place]]] = defaultdict(list)
        self._conflicts_at: dict[str, list[tuple[Place, Place]]] = defaultdict(list)
        self._faults: dict[tuple[str, str], tuple[Tally, list[Place]]] = {}
        self._unreadable = 0
        self._staged: dict[int, int] = defaultdict(int)  # by shard
        self._lost_ends: list[LostEnd] = []

    def result(self, seconds: float) -> Audit:
        organizations = [
            Conservation(
                organization_id,
                self._accepted[organization_id],
                dict(sorted(self._classes[organization_id].items())),
                self._conflicts[organization_id],
                tuple(self._duplicates_at[organization_id][:LISTED_MAX]),
                tuple(self._conflicts_at[organization_id][:LISTED_MAX]),
            )
            for organization_id in sorted({*self._accepted, *self._classes})
        ]
        faults = [
            Fault(kind, organization_id, tally, tuple(sorted(places, key=_log_order)[:LISTED_MAX]))
            for (organization_id, kind), (tally, places) in sorted(self._faults.items())
        ]
        return Audit(
            self._watermark, tuple(organizations), tuple(faults), self._unreadable, seconds, tuple(self._lost_ends)
        )

    # -- asking --------------------------------------------------------------------------------------------------------

    def _rows(self, query: str, client: Client | None = None, **parameters: object) -> Sequence[Sequence[Any]]:
        """client: the first shard's without, which has what is no usage."""
        given: dict[str, object] = {**self._parameters, **parameters}
        scope = "1"
        if self._organization_id is not None:
            scope, given["organization"] = "organization_id = {organization:String}", self._organization_id
        query = query.replace("NOT_VOIDED", not_voided(self._condition)).replace("ORGANIZATION", scope)
        query = query.replace("BELOW", self._condition).replace("LISTED", str(LISTED_MAX))
        return (client or self._shards.first).query(query, given).result_rows

    def _of_partition(self, query: str, partition: int, **parameters: object) -> Sequence[Sequence[Any]]:
        return self._rows(query, self._shards.of(partition), partition=partition, **parameters)

    def _everywhere(self, query: str, **parameters: object) -> Iterator[Sequence[Any]]:
        """OWN: that a row is of a partition that the server has."""
        for client, own in self._shards.everywhere():
            yield from self._rows(query.replace("OWN", own), client, **parameters)

    def count_identities(self, partition: int) -> None:
        faults = ", ".join(
            f"countIf({condition}), sumIf({worth}, {condition}), groupArraySortedIf(LISTED)({place}, {condition})"
            for condition, place, worth in _FAULTS.values()
        )
        count = f"SELECT count() FROM usage_accepted WHERE {_SCOPE}"
        shares = int(self._of_partition(count, partition)[0][0]) // _ROWS_AT_ONCE + 1
        for share in range(shares):
            query = _IDENTITIES.replace("FAULTS", faults)
            for row in self._of_partition(query, partition, shares=shares, share=share):
                self._take_identities(partition, row)

    def _take_identities(self, partition: int, row: Sequence[Any]) -> None:
        organization, accepted, value, again, again_value, conflicts, duplicated, conflicting, *faults = row
        self._accepted[organization] += Tally(int(accepted), value)
        if again:
            self._classes[organization][EventClass.DUPLICATE] += Tally(int(again), again_value)
        self._conflicts[organization] += int(conflicts)
        for known, found in ((self._duplicates_at, duplicated), (self._conflicts_at, conflicting)):
            known[organization] += [(place_of(partition, first), place_of(partition, last)) for first, last in found]
        for number, kind in enumerate(_FAULTS):
            events, worth, places = faults[3 * number : 3 * number + 3]
            if events:
                self._note(kind, organization, Tally(int(events), worth), (place_of(partition, at) for at in places))

    def _note(self, kind: str, organization_id: str, tally: Tally, places: Iterable[Place]) -> None:
        known, at = self._faults.get((organization_id, kind), (Tally(), []))
        self._faults[organization_id, kind] = (known + tally, [*at, *places])

    def count_classes(self, partition: int) -> None:
        staged = self._staged[self._shards.shard_of(partition)]
        for organization, number, events, value in self._of_partition(
            _CLASSES, partition, request_id=self._request_id, staged=staged
        ):
            self._classes[organization][EventClass(number)] += Tally(int(events), value)

    def compare_messages(self, partition: int) -> None:
        for epoch, offset, told, found, told_value, found_value in self._of_partition(_MESSAGES, partition):
            tally = Tally(int(found) - int(told), found_value - told_value)
            self._note("message not stored whole", "", tally, [(int(epoch), partition, int(offset), 0)])

    def count_dead_letters(self) -> None:
        """Those of events that can be read after all: they were accepted, and are in no other class."""
        condition = self._condition
        query = f"SELECT payload FROM stored_dead_letters FINAL WHERE {condition}"
        for (payload,) in self._rows(query):
            try:
                batch = usage_batch.decode(base64.b64decode(payload))
            except ValueError:
                self._unreadable += 1
                continue
            for organization_id, value in zip(batch.organization_id, batch.value, strict=True):
                if self._organization_id in (None, organization_id):
                    one = Tally(1, Decimal(0) if value is None else usage_batch.decimal_of(value))
                    self._accepted[organization_id] += one
                    self._classes[organization_id][EventClass.DEAD_LETTER] += one

    def find_lost_ends(self) -> None:
        for epoch, partition, offset in self._everywhere(_LOST_ENDS, reason=EARLIER_EPOCH):
            self._lost_ends.append(LostEnd(int(epoch), int(partition), int(offset)))

    def find_expired(self) -> None:
        for epoch, partition, first, after in self._everywhere(_EXPIRED, reason=EXPIRED):
            places = [(int(epoch), int(partition), int(offset), 0) for offset in (first, after - 1)]
            self._note("messages expired before they were stored", "", Tally(), places)

    # -- what is priced when -------------------------------------------------------------------------------------------

    def stage_windows(self, partitions: int) -> None:
        names = self._names_priced()
        ignoring = frozenset(
            row[0] for row in self._rows("SELECT id FROM stored_organizations FINAL WHERE late_policy = 'ignore'")
        )
        found = windows(self._invoices(), self._subscriptions(), names, ignoring, partitions)
        columns = ("request_id", "organization_id", "customer_id", "event_name", "start_us", "end_us",
                   "billed_below", "trued_below", "class_billed", "class_late")  # fmt: skip
        rows: dict[int, list[list[Any]]] = defaultdict(list)

        def write(shard: int) -> None:
            self._shards.at(shard).insert("audit_windows", rows[shard], column_names=columns)
            self._staged[shard] += len(rows.pop(shard))

        for one in found:
            shard = self._shards.shard_of(partition_of(one.organization_id, one.customer_id, partitions))
            rows[shard].append([self._request_id, *(getattr(one, name) for name in columns[1:])])
            if len(rows[shard]) >= _STAGED_AT_ONCE:
                write(shard)
        for shard in list(rows):
            write(shard)

    def _names_priced(self) -> dict[tuple[str, str], list[str]]:
        query = """
            SELECT product.organization_id, product.id, groupUniqArray(meter.event_name)
            FROM (SELECT organization_id, id, arrayJoin(meter_ids) AS meter_id FROM stored_products FINAL) AS product
            INNER JOIN (SELECT organization_id, id, event_name FROM stored_meters FINAL) AS meter
                ON product.organization_id = meter.organization_id AND product.meter_id = meter.id
            GROUP BY product.organization_id, product.id
        """
        return {(organization, product): list(names) for organization, product, names in self._rows(query)}

    def _invoices(self) -> list[AuditedInvoice]:
        query = """
            SELECT
                organization_id, customer_id, subscription_id, state, toUnixTimestamp64Micro(cycle_start),
                toUnixTimestamp64Micro(active_until), event_names, watermark, trued_up
            FROM stored_invoices FINAL WHERE NOT reissued AND ORGANIZATION
        """
        return [
            AuditedInvoice(
                organization_id=organization,
                customer_id=customer,
                subscription_id=subscription,
                state=state,
                cycle_start=int(start),
                active_until=int(until),
                event_names=tuple(names),
                watermark=_watermark(watermark),
                trued_up=bool(trued_up),
            )
            for organization, customer, subscription, state, start, until, names, watermark, trued_up in self._rows(
                query
            )
        ]

    def _subscriptions(self) -> Iterator[AuditedSubscription]:
        for (document,) in self._rows("SELECT document FROM stored_subscriptions FINAL WHERE ORGANIZATION"):
            yield audited(Subscription.model_validate_json(document))


def audited(subscription: Subscription) -> AuditedSubscription:
    """The subscription as the times in which each of its products is in force. Pure."""
    return AuditedSubscription(
        subscription.organization_id, subscription.customer_id, subscription.id, subscription.spans
    )


def _watermark(text: str) -> Watermark | None:
    return from_json(json.loads(text)) if text else None


def _log_order(place: Place) -> tuple[int, int, int, int]:
    epoch, partition, offset, index = place
    return epoch, offset, partition, index


# -- as JSON -----------------------------------------------------------------------------------------------------------


def document(found: Audit) -> dict[str, Any]:
    """The audit as the API answers it: values are decimal strings, places are coordinates."""
    return {
        "as_of": found.watermark.as_json(),
        "balances": found.ok,
        "organizations": [
            {
                "organization_id": each.organization_id,
                "balances": each.balances,
                "accepted": _tally_document(each.accepted),
                "classes": {kind.label: _tally_document(each.classes.get(kind, Tally())) for kind in EventClass},
                "conflicts": each.conflicts,
                "duplicates_at": [_pair_document(pair) for pair in each.duplicates_at],
                "conflicts_at": [_pair_document(pair) for pair in each.conflicts_at],
            }
            for each in found.organizations
        ],
        "faults": [
            {
                "kind": fault.kind,
                "organization_id": fault.organization_id or None,
                **_tally_document(fault.tally),
                "places": [_place_document(place) for place in fault.places],
                "detail": fault.detail or None,
            }
            for fault in found.faults
        ],
        "unreadable_dead_letters": found.unreadable,
        "lost_ends": [
            {"epoch": each.epoch, "partition": each.partition, "offset": each.offset} for each in found.lost_ends
        ],
    }


def _tally_document(tally: Tally) -> dict[str, Any]:
    return {"events": tally.events, "value": tally.text}


def _place_document(place: Place) -> dict[str, int]:
    return dict(zip(("epoch", "partition", "offset", "index"), place, strict=True))


def _pair_document(pair: tuple[Place, Place]) -> dict[str, dict[str, int]]:
    return {"first": _place_document(pair[0]), "last": _place_document(pair[1])}
