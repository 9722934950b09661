"""duplicates: events that came more than once, of which the first counts; and those whose copies conflict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated

from confluent_kafka import KafkaException
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.table import Table

from runtime.kafka.admin import check_partitions
from schemas.decimals import decimal_text
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import format_rfc3339
from schemas.settings import Settings
from usage_billing.console import DONE, fail, out, settings_for
from warehouse.client import WarehouseUnavailable
from warehouse.places import Place
from warehouse.repeats import Copy, Repeated, partitions_of, repeated_events
from warehouse.shards import open_shards

_PAGE = 500
_READ_SECONDS = 600


def duplicates(
    *,
    organization: Annotated[str, Parameter(help="Whose events.")] = DEFAULT_ORGANIZATION,
    customer: Annotated[str | None, Parameter(help="Only this customer's.")] = None,
    conflicts: Annotated[bool, Parameter(help="Only those whose copies say different values.", negative="")] = False,
    limit: Annotated[int, Parameter(help="At most so many.", validator=Number(gte=1))] = 100,
    as_json: Annotated[bool, Parameter(name="--json", help="A line of JSON each.", negative="")] = False,
) -> int:
    """List events that came more than once: by partition, the latest to be repeated first. The first copy counts."""
    settings = settings_for("duplicates")
    count = 0
    table = Table("customer", "event", "known by", "times", "copies: value at place")
    try:
        for each in _found(settings, organization, customer, conflicts, limit):
            count += 1
            if as_json:
                print(json.dumps(_document(each), ensure_ascii=False))
                continue
            known_by = each.event_id or (f"key {each.idempotency_key}" if each.idempotency_key else "?")
            copies = ", ".join(f"{_value(copy)} at {'/'.join(map(str, copy.place))}" for copy in each.copies)
            mark = " (conflict)" if each.conflicting else ""
            table.add_row(each.customer_id or "?", each.event_name or "?", known_by + mark, str(each.times), copies)
    except (WarehouseUnavailable, KafkaException) as error:
        fail(str(error))
    if not as_json:
        out.print(table)
        out.print(f"  {count} listed; a place is epoch/partition/offset/index in usage.events")
    return DONE


def _found(
    settings: Settings, organization: str, customer: str | None, conflicts: bool, limit: int
) -> Iterator[Repeated]:
    asked = partitions_of(organization, customer, check_partitions(settings).partitions)
    after: Place | None = None
    with open_shards(settings, read_timeout_seconds=_READ_SECONDS) as shards:
        while limit > 0:
            page = repeated_events(
                shards,
                organization,
                asked,
                min(_PAGE, limit),
                customer_id=customer,
                conflicts_only=conflicts,
                after=after,
            )
            yield from page
            if len(page) < _PAGE:
                return
            limit, after = limit - len(page), page[-1].last


def _value(copy: Copy) -> str:
    return "no value" if copy.value is None else decimal_text(copy.value)


def _document(each: Repeated) -> dict[str, object]:
    return {
        "customer_id": each.customer_id,
        "event_name": each.event_name,
        "event_id": each.event_id,
        "idempotency_key": each.idempotency_key,
        "times": each.times,
        "conflict": each.conflicting,
        "copies": [
            {
                "value": None if copy.value is None else decimal_text(copy.value),
                "place": "/".join(map(str, copy.place)),
                "received_at": copy.received_at and format_rfc3339(copy.received_at),
            }
            for copy in each.copies
        ],
    }
