"""usage.events → live totals and alerts (aggregator), rows in ClickHouse (sink)."""
