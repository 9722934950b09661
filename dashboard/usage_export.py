"""every event that counts → a file: CSV for people, JSON lines and Parquet for programs; each goes in again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from fastapi import Response

from dashboard.files import JSON_LINES, PARQUET, csv_response, file_response
from dashboard.services import Services
from dashboard.usage_queries import EventFilter, StoredEvent, export_events, export_parquet
from runtime.csv_text import csv_rows, safe_cell
from runtime.problem import Problem
from schemas.decimals import plain
from schemas.period import format_rfc3339

ExportFormat = Literal["csv", "jsonl", "parquet"]
MEDIA_TYPES: dict[ExportFormat, str] = {"csv": "text/csv", "jsonl": JSON_LINES, "parquet": PARQUET}
_COLUMNS = (
    "customer_id", "event_name", "event_id", "timestamp", "value", "received_at",
    "epoch", "partition", "offset", "index", "properties",
)  # fmt: skip


def usage_file(services: Services, organization_id: str, wanted: EventFilter, kind: ExportFormat) -> Response:
    """usage.csv, usage.jsonl or usage.parquet."""
    if kind == "csv":
        return csv_response(usage_csv(services, organization_id, wanted), "usage.csv")
    if kind == "jsonl":
        return file_response(usage_json_lines(services, organization_id, wanted), "usage.jsonl", JSON_LINES)
    shards, customer_id = services.warehouse.aside_shards(), wanted.customer_id
    if customer_id is None and shards.count > 1:
        # Each server would write a file of its own.
        raise Problem(422, "parquet_of_one_shard", "usage is on several servers: name a customer, or take csv or jsonl")
    client = shards.first if customer_id is None else shards.of_customer(organization_id, customer_id)
    return file_response(export_parquet(client, organization_id, wanted), "usage.parquet", PARQUET)


def usage_csv(services: Services, organization_id: str, wanted: EventFilter) -> Iterator[str]:
    """Block by block, with a head."""
    yield csv_rows([_COLUMNS])
    for block in export_events(services.warehouse.aside_shards(), organization_id, wanted):
        yield csv_rows(_cells(event) for event in block)


def usage_json_lines(services: Services, organization_id: str, wanted: EventFilter) -> Iterator[str]:
    """An object a line, block by block; text as it is, values as decimal strings."""
    for block in export_events(services.warehouse.aside_shards(), organization_id, wanted):
        yield "".join(json.dumps(_document(event), ensure_ascii=False) + "\n" for event in block)


def _document(event: StoredEvent) -> dict[str, Any]:
    cells = (
        event.customer_id, event.event_name, event.event_id, format_rfc3339(event.timestamp),
        None if event.value is None else plain(event.value), format_rfc3339(event.received_at),
        event.epoch, event.partition, event.offset, event.index, event.properties,
    )  # fmt: skip
    return dict(zip(_COLUMNS, cells, strict=True))


def _cells(event: StoredEvent) -> list[Any]:
    value = "" if event.value is None else plain(event.value)
    properties = json.dumps(event.properties, ensure_ascii=False) if event.properties else ""
    return [
        safe_cell(event.customer_id), safe_cell(event.event_name), safe_cell(event.event_id or ""),
        format_rfc3339(event.timestamp), value, format_rfc3339(event.received_at),
        event.epoch, event.partition, event.offset, event.index, safe_cell(properties),
    ]  # fmt: skip
