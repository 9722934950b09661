"""organization, period → what ClickHouse has stored of it: exact totals, raw events, invoices, orders.

Every function asks for one organization's rows, which its caller takes from the key. They block: run them in a thread.
Each raises WarehouseUnavailable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from heapq import merge
from itertools import chain, islice
from typing import IO, Any, Literal, cast

from ledger.benefits import Unpaid
from schemas.decimals import decimal_text, exact
from schemas.meter import Aggregation, Meter
from schemas.period import SECOND_US, Cycle, UsageWindow, calendar_month, window_containing
from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, unavailable
from warehouse.shards import Store, at_once, shards_of
from warehouse.watermark_sql import below, not_voided

# Names a window in the organization's zone: hours and days by their start in seconds since 1970, months by year × 100 +
# month. ClickHouse's dates begin with 1970: west of Greenwich the month of the first events has no start there.
_WINDOW_NAMES: dict[UsageWindow | Literal["all"], str] = {
    "all": "0",
    "hour": "toUnixTimestamp(toStartOfHour(timestamp, {zone:String}))",
    "day": "toUnixTimestamp(toStartOfDay(timestamp, {zone:String}))",
    "month": "toYYYYMM(timestamp, {zone:String})",
}
ROWS_MAX = 100_000


class TooManyRows(Exception):
    """The answer would be longer than ROWS_MAX."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a meter reads of a customer in a period. group: a property's value, where rows are grouped by one."""

    customer_id: str
    meter_id: str
    period: Cycle
    quantity: Decimal
    group: str | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events: in the period, and where given of one customer, event_name, event_id, below a watermark."""

    period: Cycle
    customer_id: str | None = None
    event_name: str | None = None
    event_id: str | None = None
    watermark: Watermark | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event that counts, with its coordinates. Instants are µs since 1970."""

    customer_id: str
    event_name: str
    event_id: str | None
    timestamp: int
    value: Decimal | None
    properties: dict[str, str]
    received_at: int
    epoch: int
    partition: int
    offset: int
    index: int


def usage_rows(
    store: Store,
    organization_id: str,
    meters: Sequence[Meter],
    period: Cycle,
    *,
    watermark: Watermark | None,
    window: UsageWindow | None = None,
    zone: str = "UTC",
    customer_id: str | None = None,
    group_by: str | None = None,
    by_customer: bool = True,
) -> list[UsageRow]:
    """Exact quantities of events below the watermark, a row for each customer, meter and window with any.

    by_customer False: of all customers together, whose id is then empty.
    window None: the whole period is one. A window at an edge of the period is cut to it. group_by: name of a property.
    Raises TooManyRows.
    """
    condition, parameters = below(watermark)
    query = f"""
        SELECT
            {"customer_id" if by_customer else "''"} AS customer,
            event_name,
            {_WINDOW_NAMES[window or "all"]} AS window_name,
            {"properties[{group_by:String}]" if group_by else "''"} AS value_of_property,
            sum(value), count(), max(value)
        FROM usage_events FINAL
        WHERE organization_id = {{organization_id:String}}
            AND event_name IN {{event_names:Array(String)}}
            {"AND customer_id = {customer_id:String}" if customer_id is not None else ""}
            AND timestamp >= fromUnixTimestamp64Micro({{from_us:Int64}})
            AND timestamp < fromUnixTimestamp64Micro({{to_us:Int64}})
            AND {condition}
            AND {not_voided(condition)}
            AND OWN
        GROUP BY customer, event_name, window_name, value_of_property
        ORDER BY customer, window_name, event_name, value_of_property
        LIMIT {ROWS_MAX + 1}
    """
    parameters |= {
        "organization_id": organization_id,
        "event_names": sorted({meter.event_name for meter in meters}),
        "from_us": period.start_us,
        "to_us": period.end_us,
        "zone": zone,
        "customer_id": customer_id,
        "group_by": group_by,
    }
    rows = _put_together(_of_shards(store, organization_id, customer_id, query, parameters))
    if len(rows) > ROWS_MAX:
        raise TooManyRows
    found: list[UsageRow] = []
    for (customer, name, event_name, group), (total, count, greatest) in rows:
        within = _window(period, window, zone, int(name))
        for meter in meters:
            if meter.event_name == event_name:
                read = quantity(meter.aggregation, total, count, greatest)
                found.append(UsageRow(customer, meter.id, within, read, group if group_by else None))
    return found


_RowKey = tuple[str, int, str, str]
"""customer, name of the window, event_name, value of the property: rows are in this order."""
_Read = tuple[Decimal | None, int, Decimal | None]
"""sum, count, max."""


def _put_together(of_shards: Sequence[Sequence[Sequence[Any]]]) -> list[tuple[_RowKey, _Read]]:
    """Rows of several servers with the same key as one, in order."""
    found: dict[_RowKey, _Read] = {}
    for customer, event_name, name, group, total, count, greatest in chain.from_iterable(of_shards):
        key = (customer, int(name), event_name, group)
        before = found.get(key)
        read = (total, int(count), greatest)
        found[key] = read if before is None else _added(before, read)
    return sorted(found.items()) if len(of_shards) > 1 else list(found.items())


@exact
def _added(one: _Read, other: _Read) -> _Read:
    totals = [each[0] for each in (one, other) if each[0] is not None]
    greatest = [each[2] for each in (one, other) if each[2] is not None]
    return (sum(totals, Decimal(0)) if totals else None, one[1] + other[1], max(greatest, default=None))


def _of_shards(
    store: Store, organization_id: str, customer_id: str | None, query: str, parameters: dict[str, Any]
) -> list[Sequence[Sequence[Any]]]:
    """What each server says that has usage of the customer, or of any. OWN: that a row is of one of its partitions."""
    return at_once(
        _asked(store, organization_id, customer_id),
        lambda client, own: _query(client, query.replace("OWN", own), parameters),
    )


def _asked(store: Store, organization_id: str, customer_id: str | None) -> list[tuple[Client, str]]:
    shards = shards_of(store)
    return shards.everywhere() if customer_id is None else [(shards.of_customer(organization_id, customer_id), "1")]


def require_usage(store: Store, organization_id: str, customer_id: str | None) -> None:
    """That the servers answer which have usage of the customer, or of any. Raises WarehouseUnavailable."""
    at_once(_asked(store, organization_id, customer_id), lambda client, _: _query(client, "SELECT 1", {}))


def _window(period: Cycle, window: UsageWindow | None, zone: str, name: int) -> Cycle:
    if window is None:
        return period
    if window == "month":
        whole = calendar_month(zone, *divmod(name, 100))
    else:
        whole = window_containing(zone, window, name * SECOND_US)
    return Cycle(max(whole.start_us, period.start_us), min(whole.end_us, period.end_us))


def quantity(aggregation: Aggregation, total: Decimal | None, count: int, greatest: Decimal | None) -> Decimal:
    """What a meter with that aggregation reads, without trailing zeros; None: no event had a value."""
    return trimmed(aggregation.quantity(total or Decimal(0), Decimal(count), greatest, Decimal(0)))


def trimmed(number: Decimal) -> Decimal:
    """The same number without trailing zeros behind the point. (normalize() would round to the context's precision.)"""
    return Decimal(decimal_text(number))


_EVENT_COLUMNS = """
    customer_id, event_name, event_id, toUnixTimestamp64Micro(timestamp), value, properties,
    toUnixTimestamp64Micro(received_at), kafka_epoch, kafka_partition, kafka_offset, kafka_index
"""

Place = tuple[int, int, int, int, int]
"""Where a page of events ended: timestamp in µs, epoch, partition, offset, index."""


def _event_conditions(organization_id: str, wanted: EventFilter) -> tuple[str, dict[str, Any]]:
    conditions = [
        "organization_id = {organization_id:String}",
        "timestamp >= fromUnixTimestamp64Micro({from_us:Int64})",
        "timestamp < fromUnixTimestamp64Micro({to_us:Int64})",
    ]
    for name in ("customer_id", "event_name"):
        if getattr(wanted, name) is not None:
            conditions.append(f"{name} = {{{name}:String}}")
    if wanted.event_id is not None:
        conditions.append("identity = concat('c:', {event_id:String})")
    parameters = {
        "organization_id": organization_id,
        "from_us": wanted.period.start_us,
        "to_us": wanted.period.end_us,
        "customer_id": wanted.customer_id,
        "event_name": wanted.event_name,
        "event_id": wanted.event_id,
    }
    voided_by = "organization_id = {organization_id:String}"
    if wanted.watermark is not None:
        voided_by, more = below(wanted.watermark)
        conditions.append(voided_by)
        parameters |= more
    conditions.append(not_voided(voided_by))
    return " AND ".join(conditions), parameters


# The view `usage` has no identity; its event_id could not be found by the table's key.
_EVENTS = """
    SELECT *, if(startsWith(identity, 'c:'), substring(identity, 3), '') AS event_id FROM usage_events FINAL
    WHERE CONDITIONS AND OWN
"""


def stored_events(
    store: Store, organization_id: str, wanted: EventFilter, limit: int, after: Place | None
) -> list[StoredEvent]:
    """Latest first. after: the place of the last event of the page before."""
    conditions, parameters = _event_conditions(organization_id, wanted)
    place = "(toUnixTimestamp64Micro(timestamp), kafka_epoch, kafka_partition, kafka_offset, kafka_index)"
    if after is not None:
        conditions += f" AND {place} < ({', '.join(f'{number:d}' for number in after)})"
    query = f"""
        SELECT {_EVENT_COLUMNS} FROM ({_EVENTS.replace("CONDITIONS", conditions)})
        ORDER BY timestamp DESC, kafka_epoch DESC, kafka_partition DESC, kafka_offset DESC, kafka_index DESC
        LIMIT {limit:d}
        SETTINGS use_skip_indexes_if_final = 1
    """
    found = [
        [_event(row) for row in rows]
        for rows in _of_shards(store, organization_id, wanted.customer_id, query, parameters)
    ]
    return list(islice(merge(*found, key=_place_of, reverse=True), limit))


def _place_of(event: StoredEvent) -> Place:
    return event.timestamp, event.epoch, event.partition, event.offset, event.index


def export_events(store: Store, organization_id: str, wanted: EventFilter) -> Iterator[list[StoredEvent]]:
    """Every event that matches, block by block, in no order: memory does not grow with their number."""
    conditions, parameters = _event_conditions(organization_id, wanted)
    query = f"SELECT {_EVENT_COLUMNS} FROM ({_EVENTS.replace('CONDITIONS', conditions)})"
    try:
        for client, own in _asked(store, organization_id, wanted.customer_id):
            with client.query_row_block_stream(query.replace("OWN", own), parameters=parameters) as blocks:
                for block in blocks:
                    yield [_event(row) for row in block]
    except ClickHouseError as error:
        raise unavailable(error) from error


_PARQUET_COLUMNS = """
    customer_id, event_name, nullIf(event_id, '') AS event_id, timestamp, value, received_at,
    kafka_epoch AS epoch, kafka_partition AS partition, kafka_offset AS offset, kafka_index AS index, properties
"""
_PARQUET_END = b"PAR1"
_PIECE_BYTES = 1 << 20


def export_parquet(client: Client, organization_id: str, wanted: EventFilter) -> Iterator[bytes]:
    """Every event that matches, as a Parquet file that ClickHouse writes while it is read.

    Raises WarehouseUnavailable where it breaks off: the file then lacks its end, and no reader takes it.
    """
    conditions, parameters = _event_conditions(organization_id, wanted)
    # Of one server, all of it is its own: several are asked for one customer at a time.
    query = f"SELECT {_PARQUET_COLUMNS} FROM ({_EVENTS.replace('CONDITIONS', conditions).replace('OWN', '1')})"
    as_text = {"output_format_parquet_string_as_string": 1}
    end = b""
    try:
        source = cast(IO[bytes], client.raw_stream(query, parameters=parameters, settings=as_text, fmt="Parquet"))
        try:
            while piece := source.read(_PIECE_BYTES):
                end = (end + piece)[-len(_PARQUET_END) :]
                yield piece
        finally:
            source.close()
    except ClickHouseError as error:
        raise unavailable(error) from error
    if end != _PARQUET_END:
        raise WarehouseUnavailable("ClickHouse broke off in the midst of a Parquet file")


def _event(row: Sequence[Any]) -> StoredEvent:
    customer, name, event_id, timestamp, value, properties, received, epoch, partition, offset, index = row
    return StoredEvent(
        customer_id=customer,
        event_name=name,
        event_id=event_id or None,
        timestamp=int(timestamp),
        value=None if value is None else trimmed(value),
        properties=dict(properties),
        received_at=int(received),
        epoch=int(epoch),
        partition=int(partition),
        offset=int(offset),
        index=int(index),
    )


@dataclass(frozen=True, slots=True)
class InvoiceFilter:
    """at: µs; invoices whose cycle it lies in. ids: None means any."""

    id: str | None = None
    customer_id: str | None = None
    subscription_id: str | None = None
    state: str | None = None
    at: int | None = None


InvoiceDocument = dict[str, Any]
"""An invoice as the API shows it, see ledger.invoice.Invoice.document."""


def invoice_documents(
    store: Store, organization_id: str, wanted: InvoiceFilter, limit: int, after: tuple[int, str] | None = None
) -> list[InvoiceDocument]:
    """Latest cycle first. after: (cycle_start in µs, id) of the last one of the page before."""
    conditions, parameters = ["organization_id = {organization_id:String}"], {"organization_id": organization_id}
    for name in ("id", "customer_id", "subscription_id", "state"):
        if (value := getattr(wanted, name)) is not None:
            conditions.append(f"{name} = {{{name}:String}}")
            parameters[name] = value
    if wanted.at is not None:
        at = f"fromUnixTimestamp64Micro({wanted.at:d})"
        conditions.append(f"cycle_start <= {at} AND cycle_end > {at}")
    if after is not None:
        conditions.append(f"(toUnixTimestamp64Micro(cycle_start), id) < ({after[0]:d}, {{after_id:String}})")
        parameters["after_id"] = after[1]
    query = f"""
        SELECT document FROM invoices WHERE {" AND ".join(conditions)}
        ORDER BY cycle_start DESC, id DESC LIMIT {limit:d}
    """
    return [json.loads(document) for (document,) in _query(shards_of(store).first, query, parameters)]


def unpaid_invoices(store: Store, organization_id: str, customer_id: str) -> dict[str, dict[str, Unpaid]]:
    """Subscription id → invoice id → what a customer owes and nothing will collect by itself."""
    query = """
        SELECT subscription_id, id, unpaid_reason, toUnixTimestamp64Micro(assumeNotNull(unpaid_since)) FROM invoices
        WHERE organization_id = {organization_id:String} AND customer_id = {customer_id:String} AND unpaid_reason != ''
        ORDER BY cycle_start, id
    """
    owed: dict[str, dict[str, Unpaid]] = {}
    for subscription, id_, reason, since in _query(
        shards_of(store).first, query, {"organization_id": organization_id, "customer_id": customer_id}
    ):
        owed.setdefault(subscription, {})[id_] = Unpaid(reason, int(since))
    return owed


def accepted_since(store: Store, organization_id: str, since: int) -> int:
    """Events that were accepted from an instant on (µs), duplicates too."""
    query = """
        SELECT sum(events) FROM accepted_batches FINAL
        WHERE organization_id = {organization_id:String} AND received_at >= fromUnixTimestamp64Micro({since:Int64})
            AND OWN
    """
    parameters = {"organization_id": organization_id, "since": since}
    return sum(int(rows[0][0]) for rows in _of_shards(store, organization_id, None, query, parameters))


def invoice_summary(store: Store, organization_id: str) -> list[tuple[str, str, int, Decimal]]:
    """(state, currency, number, sum of totals) of all invoices."""
    query = """
        SELECT state, currency, count(), sum(ifNull(total, 0)) FROM invoices
        WHERE organization_id = {organization_id:String} GROUP BY state, currency ORDER BY state, currency
    """
    rows = _query(shards_of(store).first, query, {"organization_id": organization_id})
    return [(state, currency, int(count), total) for state, currency, count, total in rows]


@dataclass(frozen=True, slots=True)
class OrderRow:
    """A paid invoice's order. Instants are µs since 1970."""

    id: str
    invoice_id: str
    customer_id: str
    subscription_id: str
    currency: str
    amount_paid: Decimal
    paid_at: int


def orders(
    store: Store, organization_id: str, customer_id: str | None, limit: int, after: tuple[int, str] | None = None
) -> list[OrderRow]:
    """Latest first. after: (paid_at, id) of the last one of the page before."""
    conditions, parameters = ["organization_id = {organization_id:String}"], {"organization_id": organization_id}
    if customer_id is not None:
        conditions.append("customer_id = {customer_id:String}")
        parameters["customer_id"] = customer_id
    if after is not None:
        conditions.append(f"(toUnixTimestamp64Micro(paid_at), id) < ({after[0]:d}, {{after_id:String}})")
        parameters["after_id"] = after[1]
    query = f"""
        SELECT id, invoice_id, customer_id, subscription_id, currency, amount_paid, toUnixTimestamp64Micro(paid_at)
        FROM orders WHERE {" AND ".join(conditions)} ORDER BY paid_at DESC, id DESC LIMIT {limit:d}
    """
    return [OrderRow(*row) for row in _query(shards_of(store).first, query, parameters)]


def _query(client: Client, query: str, parameters: dict[str, Any]) -> Sequence[Sequence[Any]]:
    given = {name: value for name, value in parameters.items() if value is not None}
    try:
        return client.query(query, parameters=given).result_rows
    except ClickHouseError as error:
        raise unavailable(error) from error
