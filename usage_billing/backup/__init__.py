"""Kafka and ClickHouse ⇄ a directory of checked files: what no service can derive, and how to get it back."""
