"""windows of usage, each with a watermark of its own → their totals below it: what many invoices counted, in one query.

The audit asks so: invoices were counted at thousands of places in the log, and a query for each would be too many.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from decimal import Decimal

from schemas.partition import partition_of
from schemas.watermark import Watermark
from warehouse.audit_windows import order_of
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.places import ORDER_SQL
from warehouse.shards import Store, at_once, shards_of
from warehouse.totals import NO_USAGE, TotalsRequest, UsageTotal

_STAGED_AT_ONCE = 100_000
_COLUMNS = (
    "request_id", "organization_id", "customer_id", "event_name", "start_us", "end_us",
    "billed_below", "trued_below", "class_billed", "class_late",
)  # fmt: skip

# An event is in few of its series' windows: they are an array beside it, so that the join multiplies no rows. A
# tombstone counts from its own place on.
_COUNTED_AT = f"""
    SELECT organization_id, customer_id, event_name, w.1, w.2, w.3, sum(value), count(), max(value)
    FROM
    (
        SELECT
            event.organization_id AS organization_id, event.customer_id AS customer_id,
            event.event_name AS event_name, event.value AS value,
            arrayJoin(arrayFilter(
                w -> event.at >= w.1 AND event.at < w.2 AND event.place < w.3
                    AND (event.voided = 0 OR event.voided_at >= w.3),
                asked.spans
            )) AS w
        FROM
        (
            SELECT
                counted.organization_id AS organization_id, counted.customer_id AS customer_id,
                counted.event_name AS event_name, counted.value AS value, counted.at AS at, counted.place AS place,
                void.voided AS voided, void.voided_at AS voided_at
            FROM
            (
                SELECT
                    organization_id, customer_id, event_name, identity, value,
                    toUnixTimestamp64Micro(timestamp) AS at, {ORDER_SQL} AS place
                FROM usage_events FINAL
                WHERE ORGANIZATION
            ) AS counted
            LEFT JOIN
            (
                SELECT organization_id, customer_id, event_name, identity, min({ORDER_SQL}) AS voided_at, 1 AS voided
                FROM usage_voids WHERE ORGANIZATION
                GROUP BY organization_id, customer_id, event_name, identity
            ) AS void
            USING (organization_id, customer_id, event_name, identity)
        ) AS event
        INNER JOIN
        (
            SELECT
                organization_id, customer_id, event_name, groupUniqArray((start_us, end_us, billed_below)) AS spans
            FROM audit_windows
            WHERE request_id = {{request_id:UUID}} AND NOT throwIf(
                (SELECT count() FROM audit_windows WHERE request_id = {{request_id:UUID}}) != {{staged:UInt64}},
                'the node that answers does not have the windows of the audit'
            )
            GROUP BY organization_id, customer_id, event_name
        ) AS asked
        ON event.organization_id = asked.organization_id
            AND event.customer_id = asked.customer_id
            AND event.event_name = asked.event_name
    )
    GROUP BY organization_id, customer_id, event_name, w
"""


CountedAt = tuple[TotalsRequest, Watermark]
"""A window, and the watermark below which its events count."""
_Below = tuple[TotalsRequest, int]
"""A window, and the order in the log below which its events count."""


def totals_at(
    store: Store, wanted: Iterable[CountedAt], partitions: int, organization_id: str | None = None
) -> dict[CountedAt, UsageTotal]:
    """The total of each. partitions: of usage.events. organization_id: whose all of them are; None: of several.

    Raises WarehouseUnavailable.
    """
    places = {each: _place(*each, partitions) for each in wanted}
    parts = shards_of(store).by_customer(dict.fromkeys(places.values()), _customer)
    found: dict[_Below, UsageTotal] = {}
    for each in at_once(parts, lambda client, staged: _totals_below(client, staged, organization_id)):
        found |= each
    return {each: found.get(place, NO_USAGE) for each, place in places.items()}


def _customer(place: _Below) -> tuple[str, str]:
    return place[0].organization_id, place[0].customer_id


def _totals_below(client: Client, staged: list[_Below], organization_id: str | None) -> dict[_Below, UsageTotal]:
    """Of customers of one server."""
    request_id = uuid.uuid4()
    parameters: dict[str, object] = {"request_id": request_id, "staged": len(staged)}
    scope = "1"
    if organization_id is not None:
        scope, parameters["organization"] = "organization_id = {organization:String}", organization_id
    try:
        for start in range(0, len(staged), _STAGED_AT_ONCE):
            some = staged[start : start + _STAGED_AT_ONCE]
            rows = [[request_id, *window, below, 0, 0, 0] for window, below in some]
            client.insert("audit_windows", rows, column_names=_COLUMNS)
        answered = client.query(_COUNTED_AT.replace("ORGANIZATION", scope), parameters).result_rows
    except ClickHouseError as error:
        raise unavailable(error) from error
    found: dict[_Below, UsageTotal] = {}
    for organization, customer, name, start, end, below, summed, count, greatest in answered:
        window = TotalsRequest(str(organization), customer, str(name), int(start), int(end))
        found[window, int(below)] = UsageTotal(Decimal(0) if summed is None else summed, int(count), greatest)
    return found


def _place(window: TotalsRequest, watermark: Watermark, partitions: int) -> _Below:
    """The order in the log of the first event of the window's customer that the watermark does not count."""
    return window, order_of(watermark, partition_of(window.organization_id, window.customer_id, partitions))
