"""One customer with more events than memory holds at once: the independent count of the gate spills and is exact."""

from __future__ import annotations

from decimal import Decimal

import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from schemas.settings import Settings
from warehouse.client import TooMuch, connect
from warehouse.migrate import migrate
from warehouse.totals import TotalsRequest, independent_totals

EVENTS = 2_000_000
MEGABYTE = 1_000_000
# As a server of many gigabytes has for half a billion events; all figures scaled down alike.
MEMORY = 200 * MEGABYTE
# One thread: each one more holds blocks of its own of what was spilled, and how many run depends on the machine's load.
SCALED = {"max_memory_usage": MEMORY, "max_threads": 1}
NOT_SPILLING = {"max_bytes_before_external_group_by": 0, "max_bytes_ratio_before_external_group_by": 0}
_EVENTS = f"""
    INSERT INTO usage_events
        (organization_id, customer_id, event_name, identity, timestamp, value, received_at, kafka_epoch,
         kafka_partition, kafka_offset, kafka_index, version)
    SELECT
        'default', 'huge', 'calls', concat('c:', toString(number)), toDateTime64(1000, 6, 'UTC'), 1,
        toDateTime64(1000, 6, 'UTC'), 1, 0, intDiv(number, 1000), number % 1000, 0
    FROM numbers({EVENTS})
"""


@pytest.mark.timeout(300)
def test_a_customer_larger_than_memory_is_counted_exactly(clickhouse: ClickHouseLocal, database: str) -> None:
    settings = Settings(clickhouse_dsn=clickhouse.dsn(database))  # pyright: ignore[reportCallIssue]
    migrate(settings)
    request = TotalsRequest("default", "huge", "calls", 0, 2_000_000_000)
    with connect(settings) as client:
        client.command(_EVENTS)
    with (
        connect(settings, more_settings={**SCALED, **NOT_SPILLING}) as client,
        pytest.raises(TooMuch, match="241"),
    ):
        independent_totals(client, [request], None)
    spilling = {**SCALED, "max_bytes_before_external_group_by": MEMORY // 4}
    with connect(settings, more_settings=spilling) as client:
        found = independent_totals(client, [request], None)[request]
    assert (found.count, found.sum) == (EVENTS, Decimal(EVENTS))
