"""windows of usage that was billed → those in which events were stored or voided since, in one query."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from schemas.watermark import Watermark
from warehouse.shards import Store
from warehouse.totals import TotalsRequest, answers
from warehouse.watermark_sql import below

# Rows of all events, duplicates too, and tombstones, which don't say when what they void was used: what they come to is
# counted afterwards. Most rows drop out by their place in the log before anything is joined.
_LATE = """
    SELECT
        requested.position,
        countIf(
            event.is_event = 1
            AND (isNull(event.at_us) OR (event.at_us >= requested.start_us AND event.at_us < requested.end_us))
        )
    FROM
    (
        SELECT
            organization_id, customer_id, event_name, toNullable(toUnixTimestamp64Micro(timestamp)) AS at_us,
            1 AS is_event
        FROM usage_events
        WHERE NOT SINCE AND BELOW AND CUSTOMERS AND SPAN
        UNION ALL
        SELECT organization_id, customer_id, event_name, NULL AS at_us, 1 AS is_event
        FROM usage_voids
        WHERE NOT SINCE AND BELOW
    ) AS event
    RIGHT JOIN WINDOWS AS requested
        ON event.organization_id = requested.organization_id
        AND event.customer_id = requested.customer_id
        AND event.event_name = requested.event_name
    GROUP BY requested.position
"""


def late_windows(
    store: Store,
    wanted: Sequence[TotalsRequest],
    since: Watermark,
    watermark: Watermark,
    *,
    mark: uuid.UUID | None = None,
) -> set[TotalsRequest]:
    """Those of the windows with events or tombstones at or after `since` and below the watermark.

    A tombstone counts for every window of its customer and event_name. mark: as in exact_totals. Raises
    IncompleteAnswer, WarehouseUnavailable.
    """
    condition, parameters = below(since, name="since")
    query, distinct = _LATE.replace("SINCE", condition), list(dict.fromkeys(wanted))
    found = answers(store, query, distinct, watermark, mark=mark, more_parameters=parameters)
    return {window for window, (events,) in found.items() if events}
