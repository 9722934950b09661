"""windows of usage → their exact totals, all in one query; and the same by another way, which billing holds them to."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, NamedTuple

from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, unavailable
from warehouse.one_store import MARK_IS_THERE
from warehouse.shards import Store, at_once, shards_of
from warehouse.watermark_sql import below, not_voided


class TotalsRequest(NamedTuple):
    """Events of one name of one customer in the half-open window [start_us, end_us), µs since 1970."""

    organization_id: str
    customer_id: str
    event_name: str
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """sum: of the values there are, 0 without any. count: events, whatever their value. max: None without a value."""

    sum: Decimal
    count: int
    max: Decimal | None


class IncompleteAnswer(WarehouseUnavailable):
    """The node that answered did not have every window that was asked for, so that its zeros mean nothing."""


_ANSWERS_MAX = 3

NO_USAGE = UsageTotal(Decimal(0), 0, None)

# Few windows go with the query; more are put beside the events: a server takes 128 KiB in one parameter.
_GIVEN_MAX = 100
_GIVEN_CHARACTERS_MAX = 30_000
_GIVEN = """(
    SELECT
        given.1 AS position, given.2 AS organization_id, given.3 AS customer_id, given.4 AS event_name,
        given.5 AS start_us, given.6 AS end_us
    FROM (SELECT arrayJoin({windows:Array(Tuple(UInt32, String, String, String, Int64, Int64))}) AS given)
)"""
# A node that has not all of them, or has some twice, answers with none. The subquery is evaluated before anything else
# is read, so that all parts of a query see the same windows.
_STAGED = """(
    SELECT * FROM totals_requests
    WHERE request_id = {request_id:UUID}
        AND (SELECT count() FROM totals_requests WHERE request_id = {request_id:UUID}) = {requested:UInt64}
)"""

# Each event that counts, by the engine's own collapsing: the version in the table makes the first in the log win. The
# timestamp is looked at after that: a duplicate in the window must not stand in for a first outside of it. Tombstones
# below the watermark void an identity, not a row.
_COUNTED = """
    SELECT organization_id, customer_id, event_name, timestamp, value
    FROM usage_events FINAL
    WHERE BELOW AND CUSTOMERS AND SPAN AND NOT_VOIDED
"""
# The same from all rows that there are, merged or not, by the coordinates themselves: neither FINAL nor partitions nor
# the columns version and position have a part in it. Identities are told apart by 128 bits of SipHash: groups of a
# fixed size take an eighth of the time of groups of strings, and two of a billion are alike once in 10^20 times.
# argMin passes over NULL, so a first event without a value gets a mark of its own.
_FOLDED = """
    SELECT organization_id, customer_id, event_name, timestamp, if(valueless, NULL, amount) AS value
    FROM
    (
        WITH
            bitOr(
                bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)),
                toUInt64(kafka_index)
            ) AS order_in_log
        SELECT
            any(organization_id) AS organization_id,
            any(customer_id) AS customer_id,
            any(event_name) AS event_name,
            argMin(usage_events.timestamp, order_in_log) AS timestamp,
            argMin(ifNull(usage_events.value, 0::Decimal(38, 9)), order_in_log) AS amount,
            argMin(isNull(usage_events.value), order_in_log) AS valueless
        FROM usage_events
        WHERE BELOW AND CUSTOMERS AND cityHash64(usage_events.customer_id) % {shares:UInt32} = {share:UInt32}
        GROUP BY sipHash128(
            usage_events.organization_id,
            usage_events.customer_id,
            usage_events.event_name,
            identity,
            if(identity = '' AND message_hash = 0, order_in_log, 0),
            if(identity = '' AND message_hash = 0, kafka_partition, 0),
            message_hash,
            if(message_hash = 0, 0, toUnixTimestamp64Micro(received_at)),
            if(message_hash = 0, 0, kafka_index)
        )
        HAVING any(sipHash128(
            usage_events.organization_id, usage_events.customer_id, usage_events.event_name, identity
        )) NOT IN (SELECT sipHash128(organization_id, customer_id, event_name, identity) FROM usage_voids WHERE BELOW)
    )
    WHERE SPAN
"""
# Every window has its row, also one without events: what has none was not asked of this node, and is not 0. So that the
# join and the answer are of the same windows, it is a RIGHT JOIN, which reads them once.
_JOINED = """
    SELECT
        requested.position,
        sumIf(event.value, is_within), countIf(is_within), maxIf(event.value, is_within)
    FROM (SELECT *, 1 AS is_event FROM (EVENTS)) AS event
    RIGHT JOIN (SELECT * FROM WINDOWS WHERE cityHash64(customer_id) % {shares:UInt32} = {share:UInt32}) AS requested
        ON event.organization_id = requested.organization_id
        AND event.customer_id = requested.customer_id
        AND event.event_name = requested.event_name
    GROUP BY requested.position
"""
_WITHIN = """(
    event.is_event = 1
    AND toUnixTimestamp64Micro(event.timestamp) >= requested.start_us
    AND toUnixTimestamp64Micro(event.timestamp) < requested.end_us
)"""
# Few customers are found by the tables' key; for many it is quicker to read everything once.
_CUSTOMERS_BY_KEY_MAX = 20_000
_BY_KEY = """
    (usage_events.organization_id, usage_events.customer_id, usage_events.event_name)
        IN (SELECT organization_id, customer_id, event_name FROM WINDOWS)
"""
_SPAN = (
    "toUnixTimestamp64Micro(timestamp) >= {span_start:Int64} AND toUnixTimestamp64Micro(timestamp) < {span_end:Int64}"
)
# About 100 bytes a row are held while a share of the customers is folded.
_ROWS_FOLDED_AT_ONCE = 4_000_000


def exact_totals(
    store: Store,
    wanted: Sequence[TotalsRequest],
    watermark: Watermark | None,
    *,
    mark: uuid.UUID | None = None,
) -> dict[TotalsRequest, UsageTotal]:
    """The total of every window wanted, of events below the watermark (None: of all stored), by one query of a shard.

    Windows may overlap. mark: of warehouse.one_store; a node without it does not answer. Raises IncompleteAnswer,
    WarehouseUnavailable.
    """
    return _totals(store, wanted, watermark, _COUNTED, mark, shares_for=lambda _: 1)


def independent_totals(
    store: Store,
    wanted: Sequence[TotalsRequest],
    watermark: Watermark | None,
    *,
    mark: uuid.UUID | None = None,
) -> dict[TotalsRequest, UsageTotal]:
    """What exact_totals answers, found by folding raw rows: the first per identity. Raises as it does.

    It takes a query for each share of the customers that fits into memory.
    """
    return _totals(store, wanted, watermark, _FOLDED, mark, shares_for=_shares_folded)


def _shares_folded(client: Client) -> int:
    try:
        rows = int(client.query("SELECT count() FROM usage_events").result_rows[0][0])
    except ClickHouseError as error:
        raise unavailable(error) from error
    return rows // _ROWS_FOLDED_AT_ONCE + 1


def _totals(
    store: Store,
    wanted: Sequence[TotalsRequest],
    watermark: Watermark | None,
    events: str,
    mark: uuid.UUID | None,
    *,
    shares_for: Callable[[Client], int],
) -> dict[TotalsRequest, UsageTotal]:
    template = _JOINED.replace("is_within", _WITHIN).replace("EVENTS", events)

    def total(row: Sequence[Any]) -> UsageTotal:
        summed, count, greatest = row
        return UsageTotal(Decimal(0) if summed is None else summed, int(count), greatest)

    found = answers(store, template, list(dict.fromkeys(wanted)), watermark, shares_for=shares_for, mark=mark)
    return {window: total(row) for window, row in found.items()}


def answers(
    store: Store,
    template: str,
    wanted: Sequence[TotalsRequest],
    watermark: Watermark | None,
    *,
    shares_for: Callable[[Client], int] = lambda _: 1,
    mark: uuid.UUID | None = None,
    more_parameters: Mapping[str, object] = MappingProxyType({}),
) -> dict[TotalsRequest, Sequence[Any]]:
    """What a query says of each window: its rows begin with the window's position. One query for each share.

    A window is asked of the shard that has its customer. wanted: each once. shares_for: into how many shares a server's
    customers are divided. mark: as in exact_totals. An answer that lacks a window, or has one twice, is thrown
    away and asked for again. Raises IncompleteAnswer, WarehouseUnavailable.
    """

    def asked(client: Client, windows: list[TotalsRequest]) -> dict[TotalsRequest, Sequence[Any]]:
        shares = shares_for(client)
        if _by_key(windows):
            shares = max(1, min(shares, len(_customers(windows))))
        return _answers(client, template, windows, watermark, shares, mark, more_parameters)

    found: dict[TotalsRequest, Sequence[Any]] = {}
    for each in at_once(shards_of(store).by_customer(wanted, _customer), asked):
        found |= each
    return found


def _answers(
    client: Client,
    template: str,
    wanted: Sequence[TotalsRequest],
    watermark: Watermark | None,
    shares: int,
    mark: uuid.UUID | None,
    more_parameters: Mapping[str, object],
) -> dict[TotalsRequest, Sequence[Any]]:
    """Of one server."""
    written, parameters = totals_sql(template, wanted, watermark)
    parameters |= more_parameters
    answered = 0
    for _ in range(_ANSWERS_MAX):
        try:
            query, staged = with_windows(client, written, parameters, wanted, mark)
            rows = [
                row
                for share in range(shares)
                for row in client.query(query, {**staged, "shares": shares, "share": share}).result_rows
            ]
        except ClickHouseError as error:
            raise unavailable(error) from error
        found: dict[TotalsRequest, Sequence[Any]] = {wanted[position]: rest for position, *rest in rows}
        answered = len(found)
        if len(rows) == answered == len(wanted):
            return found
    raise IncompleteAnswer(f"ClickHouse answered for {answered} of {len(wanted)} windows of usage")


def totals_sql(
    template: str, wanted: Sequence[TotalsRequest], watermark: Watermark | None
) -> tuple[str, dict[str, object]]:
    """The query with BELOW, CUSTOMERS and SPAN written out, and its parameters; `with_windows` does the rest."""
    condition, parameters = below(watermark)
    parameters |= {
        "span_start": min(one.start_us for one in wanted),
        "span_end": max(one.end_us for one in wanted),
    }
    query = template.replace("NOT_VOIDED", not_voided(condition)).replace("BELOW", condition).replace("SPAN", _SPAN)
    return query.replace("CUSTOMERS", _BY_KEY if _by_key(wanted) else "1"), parameters


def _customer(wanted: TotalsRequest) -> tuple[str, str]:
    return wanted.organization_id, wanted.customer_id


def _customers(wanted: Sequence[TotalsRequest]) -> set[tuple[str, str]]:
    return set(map(_customer, wanted))


def _by_key(wanted: Sequence[TotalsRequest]) -> bool:
    return len(_customers(wanted)) <= _CUSTOMERS_BY_KEY_MAX


def with_windows(
    client: Client,
    query: str,
    parameters: dict[str, object],
    wanted: Sequence[TotalsRequest],
    mark: uuid.UUID | None = None,
) -> tuple[str, dict[str, object]]:
    """The query with WINDOWS written out, and its parameters; a window's position is its index in `wanted`.

    Many windows are put into a table first, which forgets them after a day. mark: a node without it has no windows.
    """
    if mark is not None:
        query = query.replace("WINDOWS", f"(SELECT * FROM WINDOWS WHERE {MARK_IS_THERE})")
        parameters = {**parameters, "mark": mark}
    given = [(position, *one) for position, one in enumerate(wanted[:_GIVEN_MAX])]
    if len(wanted) <= _GIVEN_MAX and len(repr(given)) <= _GIVEN_CHARACTERS_MAX:
        return query.replace("WINDOWS", _GIVEN), {**parameters, "windows": given}
    request_id = uuid.uuid4()
    _stage(client, request_id, wanted)
    return query.replace("WINDOWS", _STAGED), {**parameters, "request_id": request_id, "requested": len(wanted)}


def _stage(client: Client, request_id: uuid.UUID, wanted: Sequence[TotalsRequest]) -> None:
    columns: dict[str, Sequence[Any]] = {
        "request_id": [request_id] * len(wanted),
        "position": range(len(wanted)),
        "organization_id": [one.organization_id for one in wanted],
        "customer_id": [one.customer_id for one in wanted],
        "event_name": [one.event_name for one in wanted],
        "start_us": [one.start_us for one in wanted],
        "end_us": [one.end_us for one in wanted],
    }
    client.insert("totals_requests", list(columns.values()), column_names=list(columns), column_oriented=True)
