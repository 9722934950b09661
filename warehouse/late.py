"""windows of usage that was billed → those in which events were stored or voided since. One query."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.watermark import Watermark
from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.totals import TotalsRequest, totals_sql, with_windows
from warehouse.watermark_sql import below

# Rows of all events, duplicates too, and tombstones, which don't say when what they void was used: what they come to is
# counted afterwards. Most rows drop out by their place in the log before anything is joined.
_LATE = """
    SELECT DISTINCT requested.position
    FROM
    (
        SELECT organization_id, customer_id, event_name, toNullable(toUnixTimestamp64Micro(timestamp)) AS at_us
        FROM usage_events
        WHERE NOT SINCE AND BELOW AND CUSTOMERS AND SPAN
        UNION ALL
        SELECT organization_id, customer_id, event_name, NULL AS at_us
        FROM usage_voids
        WHERE NOT SINCE AND BELOW
    ) AS event
    INNER JOIN WINDOWS AS requested
        ON event.organization_id = requested.organization_id
        AND event.customer_id = requested.customer_id
        AND event.event_name = requested.event_name
    WHERE isNull(event.at_us) OR (event.at_us >= requested.start_us AND event.at_us < requested.end_us)
"""


def late_windows(
    client: Client, wanted: Sequence[TotalsRequest], since: Watermark, watermark: Watermark
) -> set[TotalsRequest]:
    """Those of the windows with events or tombstones at or after `since` and below the watermark.

    A tombstone counts for every window of its customer and event_name. Raises WarehouseUnavailable.
    """
    distinct = list(dict.fromkeys(wanted))
    if not distinct:
        return set()
    query, parameters = totals_sql(_LATE, distinct, watermark)
    condition, more = below(since, name="since")
    try:
        query, parameters = with_windows(client, query.replace("SINCE", condition), {**parameters, **more}, distinct)
        rows = client.query(query, parameters).result_rows
    except ClickHouseError as error:
        raise unavailable(error) from error
    return {distinct[position] for (position,) in rows}
