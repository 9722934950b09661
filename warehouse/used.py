"""partition, watermark → which customers used what in which months: where there may be a total. One query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from schemas.watermark import Watermark
from warehouse.shards import Store, shards_of
from warehouse.watermark_sql import below

Scope = tuple[str, str | None, str | None]
"""organization_id, customer_id or None for all of its, event_name or None."""

_MONTHS = """
    SELECT organization_id, customer_id, event_name, groupUniqArray(toYYYYMM(timestamp, 'UTC'))
    FROM usage_events
    WHERE kafka_partition = {partition:UInt16} AND BELOW AND (SCOPE)
    GROUP BY organization_id, customer_id, event_name
"""


@dataclass(frozen=True, slots=True)
class UsedMonth:
    """A series has events, duplicates maybe, in the month of UTC [from_us, until_us), µs."""

    series: tuple[str, str, str]
    from_us: int
    until_us: int


def used_months(store: Store, partition: int, watermark: Watermark, scope: Sequence[Scope] | None) -> list[UsedMonth]:
    """Of a partition's events below the watermark. scope: only those; None: all. Raises ClickHouseError."""
    condition, parameters = below(watermark)
    wanted = "1"
    if scope is not None:
        wanted = " OR ".join(_condition(number, each, parameters) for number, each in enumerate(scope)) or "0"
    query = _MONTHS.replace("BELOW", condition).replace("SCOPE", wanted)
    rows = shards_of(store).of(partition).query(query, {**parameters, "partition": partition}).result_rows
    return [
        UsedMonth((str(organization), str(customer), str(name)), *_month(int(month)))
        for organization, customer, name, months in rows
        for month in months
    ]


def _condition(number: int, scope: Scope, parameters: dict[str, Any]) -> str:
    names = ("organization_id", "customer_id", "event_name")
    given = [(name, value) for name, value in zip(names, scope, strict=True) if value is not None]
    for name, value in given:
        parameters[f"{name}_{number}"] = value
    return "(" + " AND ".join(f"{name} = {{{name}_{number}:String}}" for name, _ in given) + ")"


def _month(number: int) -> tuple[int, int]:
    year, month = divmod(number, 100)
    following = (year, month + 1) if month < 12 else (year + 1, 1)
    return _us(year, month), _us(*following)


def _us(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000_000
