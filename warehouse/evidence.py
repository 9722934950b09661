"""a window of usage → the events behind its total, one by one; and rows that are not what was accepted.

What was accepted lies in two tables: the event itself, and its place, value and a hash of its identity. A row that was
changed, added or removed afterwards is found by holding them against each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from schemas.decimals import decimal_text
from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, unavailable
from warehouse.places import IDENTITY_HASH_SQL
from warehouse.shards import Store, shards_of
from warehouse.totals import TotalsRequest
from warehouse.watermark_sql import below, not_voided

FAULTS_MAX = 20
Role = Literal["counted", "late", "voided"]

_WINDOW = """
    organization_id = {organization_id:String} AND customer_id = {customer_id:String}
    AND event_name = {event_name:String}
    AND timestamp >= fromUnixTimestamp64Micro({start_us:Int64})
    AND timestamp < fromUnixTimestamp64Micro({end_us:Int64})
"""
_EVENTS = """
    SELECT
        toUnixTimestamp64Micro(timestamp), if(startsWith(identity, 'c:'), substring(identity, 3), ''), value,
        properties, toUnixTimestamp64Micro(received_at), kafka_epoch, kafka_partition, kafka_offset, kafka_index,
        multiIf(NOT COUNTS_NOW, 'voided', NOT BEFORE, 'late', 'counted') AS role
    FROM usage_events FINAL
    WHERE BELOW AND WINDOW AND (COUNTS_NOW OR COUNTED_BEFORE)
    ORDER BY timestamp, kafka_epoch, kafka_partition, kafka_offset, kafka_index
"""
_COORDINATES = "kafka_epoch, kafka_partition, kafka_offset, kafka_index"
_CHANGED = f"""
    SELECT
        {_COORDINATES}, stored.identity, stored.value, accepted.value, accepted.identity_hash,
        {IDENTITY_HASH_SQL} AS hash
    FROM usage_events AS stored
    LEFT JOIN
    (
        SELECT * FROM usage_accepted FINAL
        WHERE organization_id = {{organization_id:String}} AND BELOW
            AND kafka_partition IN (SELECT kafka_partition FROM usage_events WHERE MINE)
    ) AS accepted USING ({_COORDINATES})
    WHERE MINE AND BELOW
        AND (
            isNull(accepted.identity_hash) OR accepted.identity_hash != hash
            OR isNull(stored.value) != isNull(accepted.value) OR stored.value != accepted.value
        )
    ORDER BY {_COORDINATES} LIMIT {FAULTS_MAX}
    SETTINGS join_use_nulls = 1
"""
_MISSING = f"""
    SELECT {_COORDINATES}, value
    FROM usage_accepted FINAL
    WHERE organization_id = {{organization_id:String}} AND BELOW AND kafka_partition = {{partition:UInt16}}
        AND identity_hash NOT IN
        (
            SELECT {IDENTITY_HASH_SQL} FROM usage_events
            WHERE organization_id = {{organization_id:String}} AND kafka_partition = {{partition:UInt16}}
        )
    ORDER BY {_COORDINATES} LIMIT {FAULTS_MAX}
"""
_MINE = """(
    organization_id = {organization_id:String} AND customer_id = {customer_id:String}
    AND event_name = {event_name:String}
)"""


@dataclass(frozen=True, slots=True)
class CountedEvent:
    """An event behind a quantity. Instants: µs.

    role: `late`, it came after the cycle had been invoiced; `voided`, it was invoiced and does not count any more.
    """

    timestamp: int
    event_id: str
    value: Decimal | None
    properties: dict[str, str]
    received_at: int
    epoch: int
    partition: int
    offset: int
    index: int
    role: Role


def counted_events(
    store: Store, window: TotalsRequest, watermark: Watermark, invoiced: Watermark | None = None
) -> Iterator[list[CountedEvent]]:
    """Every event of the window that counts below the watermark, oldest first, block by block.

    invoiced: an earlier watermark; what counted below it and does not any more is among them. Raises
    WarehouseUnavailable.
    """
    condition, parameters = below(watermark)
    before, more = below(invoiced, name="invoiced")
    query = _EVENTS.replace("COUNTED_BEFORE", "0" if invoiced is None else f"({before} AND {not_voided(before)})")
    query = query.replace("COUNTS_NOW", not_voided(condition)).replace("BEFORE", before)
    query = query.replace("BELOW", condition).replace("WINDOW", _WINDOW)
    client = shards_of(store).of_customer(window.organization_id, window.customer_id)
    try:
        with client.query_row_block_stream(query, parameters=_parameters(window) | parameters | more) as blocks:
            for block in blocks:
                yield [_event(row) for row in block]
    except ClickHouseError as error:
        raise unavailable(error) from error


def row_faults(store: Store, window: TotalsRequest, partition: int, watermark: Watermark) -> list[str]:
    """Rows of the window's customer and event_name that are not as they were accepted, and events of their partition
    that are not stored any more; at most FAULTS_MAX of each, for people. Raises WarehouseUnavailable.

    A timestamp that was changed leaves no trace here.
    """
    condition, parameters = below(watermark)
    parameters |= _parameters(window) | {"partition": partition}
    told: list[str] = []
    client = shards_of(store).of(partition)
    try:
        query = _CHANGED.replace("BELOW", condition).replace("MINE", _MINE)
        for *place, identity, value, accepted, identity_hash, found in client.query(query, parameters).result_rows:
            if identity_hash is None or identity_hash != found:
                told.append(f"row at {_place(place)}: no event {identity or 'without an id'} was accepted there")
            else:
                told.append(f"row at {_place(place)}: value {_text(value)} stored, {_text(accepted)} accepted")
        query = _MISSING.replace("BELOW", condition)
        for *place, accepted in client.query(query, parameters).result_rows:
            told.append(f"row at {_place(place)}: not stored any more, value {_text(accepted)} accepted")
    except ClickHouseError as error:
        raise unavailable(error) from error
    return told


def _parameters(window: TotalsRequest) -> dict[str, Any]:
    return {
        "organization_id": window.organization_id,
        "customer_id": window.customer_id,
        "event_name": window.event_name,
        "start_us": window.start_us,
        "end_us": window.end_us,
    }


def _place(place: list[Any]) -> str:
    epoch, partition, offset, index = place
    return f"epoch {epoch}, partition {partition}, offset {offset}, index {index}"


def _text(value: Decimal | None) -> str:
    if value is None:
        return "none"
    return decimal_text(value)


def _event(row: Any) -> CountedEvent:
    timestamp, event_id, value, properties, received, epoch, partition, offset, index, role = row
    return CountedEvent(
        int(timestamp), event_id, value, dict(properties), int(received), int(epoch), int(partition), int(offset),
        int(index), role,
    )  # fmt: skip
