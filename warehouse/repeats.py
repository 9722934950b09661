"""usage_accepted → the events that came more than once, each with its copies; those whose values differ are conflicts.

The first copy is the one that counts. usage_events forgets the others when it is merged; usage_accepted keeps each
copy's place and value for ever, under a hash of the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from schemas.partition import partition_of
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.places import IDENTITY_HASH_SQL, ORDER_SQL, Place, order_of, place_of
from warehouse.shards import Store, shards_of

COPIES_MAX = 20
"""Copies of one event that are listed, first to last."""

_MINE = "organization_id = {organization_id:String} AND kafka_partition = {partition:UInt16}"
# By the customer, the sorting key's second column.
_ONLY_OF = f"""
    AND identity_hash IN
    (
        SELECT {IDENTITY_HASH_SQL}
        FROM usage_events WHERE {_MINE} AND customer_id = {{customer_id:String}}
    )
"""
_REPEATED = f"""
    SELECT
        identity_hash, max(place) AS last, count() AS times, min(told) != max(told) AS differ
    FROM
    (
        SELECT identity_hash, {ORDER_SQL} AS place, (ifNull(value, 0::Decimal(38, 9)), isNull(value)) AS told
        FROM usage_accepted FINAL WHERE {_MINE} ONLY_OF
    )
    GROUP BY identity_hash
    HAVING times > 1 AND last < {{before:UInt64}} AND (differ OR {{all:Bool}})
    ORDER BY last DESC LIMIT {{rows:UInt32}}
"""
_COPIES = f"""
    SELECT identity_hash, {ORDER_SQL} AS place, value
    FROM usage_accepted FINAL WHERE {_MINE} AND identity_hash IN {{hashes:Array(UInt64)}}
    ORDER BY place LIMIT {COPIES_MAX} BY identity_hash
"""
_RECEIVED = f"""
    SELECT kafka_epoch, kafka_offset, toUnixTimestamp64Micro(received_at)
    FROM ingest_batches FINAL
    WHERE kafka_partition = {{partition:UInt16}}
        AND {ORDER_SQL.replace("kafka_index", "0")} IN {{messages:Array(UInt64)}}
"""
_EVENTS = f"""
    SELECT DISTINCT {ORDER_SQL} AS place, customer_id, toString(event_name), identity
    FROM usage_events WHERE {_MINE} AND place IN {{places:Array(UInt64)}}
"""
_AFTER_ALL = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Copy:
    """One of an event that came more than once. received_at: µs; None: its message is not known any more."""

    place: Place
    value: Decimal | None
    received_at: int | None


@dataclass(frozen=True, slots=True)
class Repeated:
    """times: how often it came. copies: the first COPIES_MAX; the first of them counts.

    The event's names are None where its row is not stored (the audit tells of that). event_id and
    idempotency_key are both None where a message came again.
    """

    customer_id: str | None
    event_name: str | None
    event_id: str | None
    idempotency_key: str | None
    times: int
    conflicting: bool
    last: Place
    copies: tuple[Copy, ...]


def partitions_of(organization_id: str, customer_id: str | None, count: int) -> Sequence[int]:
    """Those of `count` to be asked: a customer has all of its events in one."""
    return range(count) if customer_id is None else [partition_of(organization_id, customer_id, count)]


def repeated_events(
    store: Store,
    organization_id: str,
    partitions: Sequence[int],
    limit: int,
    *,
    customer_id: str | None = None,
    conflicts_only: bool = False,
    after: Place | None = None,
) -> list[Repeated]:
    """By partition, in the order given; in each those whose last copy came last are first.

    partitions: of usage.events; those of after's and following ones are read. customer_id: only this one's, who has all
    of its events in one partition. after: `last` of the last one of the page before. Raises WarehouseUnavailable.
    """
    start = 0 if after is None else partitions.index(after[1])
    found: list[Repeated] = []
    try:
        for partition in partitions[start:]:
            parameters: dict[str, Any] = {
                "organization_id": organization_id,
                "partition": partition,
                "customer_id": customer_id,
                "all": not conflicts_only,
                "before": order_of(after) if after is not None and after[1] == partition else _AFTER_ALL,
                "rows": limit - len(found),
            }
            found += _of_partition(shards_of(store).of(partition), partition, parameters)
            if len(found) >= limit:
                break
    except ClickHouseError as error:
        raise unavailable(error) from error
    return found


def _of_partition(client: Client, partition: int, parameters: dict[str, Any]) -> Iterator[Repeated]:
    def rows(query: str, **more: Any) -> Sequence[Sequence[Any]]:
        return client.query(query, parameters | more).result_rows

    query = _REPEATED.replace("ONLY_OF", "" if parameters["customer_id"] is None else _ONLY_OF)
    repeated = rows(query)
    if not repeated:
        return
    copies: dict[int, list[tuple[int, Decimal | None]]] = {}
    for identity, order, value in rows(_COPIES, hashes=[int(row[0]) for row in repeated]):
        copies.setdefault(int(identity), []).append((int(order), value))
    messages = {order >> 10 << 10 for each in copies.values() for order, _ in each}
    received = {
        order_of((int(epoch), partition, int(offset), 0)): int(at)
        for epoch, offset, at in rows(_RECEIVED, messages=sorted(messages))
    }
    events = {int(order): names for order, *names in rows(_EVENTS, places=[each[0][0] for each in copies.values()])}
    for identity, last, times, differ in repeated:
        mine = copies[int(identity)]
        customer, name, tagged = events.get(mine[0][0], (None, None, ""))
        kind, _, told = tagged.partition(":")
        yield Repeated(
            customer_id=customer,
            event_name=name,
            event_id=told if kind == "c" else None,
            idempotency_key=told.rpartition(":")[0] if kind == "k" else None,
            times=int(times),
            conflicting=bool(differ),
            last=place_of(partition, int(last)),
            copies=tuple(
                Copy(place_of(partition, order), value, received.get(order >> 10 << 10)) for order, value in mine
            ),
        )
