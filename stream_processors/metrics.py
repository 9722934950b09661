"""What aggregator and sink count; a section each."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# -- aggregator --------------------------------------------------------------------------------------------------------

LAG = Gauge("usage_aggregator_lag", "Messages of usage.events that are not in the totals yet.", ["partition"])
EVENTS_APPLIED = Counter("usage_aggregator_events_applied_total", "Events added to totals.")
DUPLICATES = Counter("usage_aggregator_duplicates_total", "Events that were known by their identity and not added.")
UNREADABLE = Counter("usage_aggregator_unreadable_total", "Messages that are not a UsageBatch; the sink reports them.")
REPAIRS = Counter(
    "usage_aggregator_repairs_total",
    "Repairs of totals: applied, stale (computed from another state of the total) or unreadable.",
    ["outcome"],
)
GAPS = Counter("usage_aggregator_gaps_total", "Rewinds of the consumer after a rebalance.")
OFFSETS_LOST = Counter("usage_aggregator_offsets_lost_total", "Offsets that expired before they were counted.")
TOTALS = Gauge("usage_aggregator_totals", "Totals held in memory.", ["partition"])
PARTIAL = Gauge(
    "usage_aggregator_partial_organizations",
    "Organizations with more series than USAGE_LIVE_SERIES_PER_ORGANIZATION_MAX: some have no live total.",
    ["partition"],
)
FLUSH_SECONDS = Histogram(
    "usage_aggregator_flush_seconds",
    "From the first record of a flush to its commit.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
VISIBLE_SECONDS = Histogram(
    "usage_aggregator_visible_seconds",
    "From received_at of a flush's newest message to its totals in usage.totals.",
    buckets=(0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
ALERTS = Counter("usage_aggregator_alerts_total", "Alerts published.")
ALERT_SECONDS = Histogram(
    "usage_aggregator_alert_seconds",
    "From received_at of the newest message counted to the alert's acknowledgement.",
    buckets=(0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
DEDUPE_IDS = Gauge("usage_aggregator_dedupe_ids", "Event IDs that the worker remembers.", ["partition"])
DEDUPE_HORIZON_SECONDS = Gauge(
    "usage_aggregator_dedupe_horizon_seconds", "Log time back to which event ids are known.", ["partition"]
)

# -- sink --------------------------------------------------------------------------------------------------------------
PROJECTED_ROWS = Counter("usage_projections_rows_total", "Rows written to ClickHouse's stored_… tables.", ["table"])
PROJECTION_FAILURES = Counter(
    "usage_projections_failures_total", "Records that no table takes; they are in projection_failures.", ["table"]
)
PROJECTION_LAG = Gauge("usage_projections_lag", "Records of catalog, ledger and alerts that are in no table yet.")
SINK_LAG = Gauge("usage_sink_lag", "Messages of usage.events that ClickHouse does not have yet.", ["partition"])
LOG_ENDS_LOST = Gauge(
    "usage_log_ends_lost",
    "How often the log of a partition has lost its end: acknowledged events may be gone.",
    ["partition"],
)
ROWS = Counter("usage_sink_rows_total", "Events inserted, repeated ones too.")
BYTES = Counter("usage_sink_bytes_total", "Bytes of the messages inserted.")
DEAD_LETTERS = Counter("usage_sink_dead_letters_total", "Messages set aside as unreadable.", ["reason"])
FOREIGN_FAILURES = Counter(
    "usage_sink_foreign_failures_total",
    "Inserts that failed because of a foreign view or constraint on our tables.",
    ["whose"],
)
INSERT_SECONDS = Histogram(
    "usage_sink_insert_seconds",
    "From messages read to ClickHouse's answer.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
STORED_SECONDS = Histogram(
    "usage_sink_stored_seconds",
    "From received_at of an insert's newest message to its rows in ClickHouse.",
    buckets=(0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
)
REPAIRS_WRITTEN = Counter(
    "usage_reconcile_repairs_total", "Differences of live totals written to usage.repairs.", ["reason"]
)
RECONCILED_TOTALS = Counter("usage_reconcile_totals_total", "Live totals compared with ClickHouse.")
RECONCILE_SECONDS = Histogram(
    "usage_reconcile_seconds", "Time that a round of reconciling took.", buckets=(0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800)
)
