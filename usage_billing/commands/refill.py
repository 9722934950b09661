"""refill: store messages of the log again, where the audit names rows that are missing."""

from __future__ import annotations

from typing import Annotated

from confluent_kafka import KafkaException
from cyclopts import Parameter
from rich.progress import Progress

from stream_processors.refill import InvalidRange, LogChanged, parse_range
from stream_processors.refill import refill as refill_range
from usage_billing.console import DONE, FAILED, errors, fail, out, settings_for, wrong_usage
from warehouse.client import WarehouseUnavailable
from warehouse.epochs import UnknownTopic
from warehouse.shards import open_shards


def refill(
    ranges: Annotated[
        tuple[str, ...],
        Parameter(help="EPOCH/PARTITION/OFFSET, as the audit names it, or EPOCH/PARTITION/FROM..TO, both included."),
    ],
    /,
) -> int:
    """Store messages of usage.events in ClickHouse again; 1 when the log does not have all of them any more.

    What is stored already stays as it is, so a range that is too wide does no harm. Services may run meanwhile.
    """
    settings = settings_for("refill")
    try:
        wanted = [parse_range(text) for text in ranges]
    except InvalidRange as error:
        wrong_usage(str(error))
    if not wanted:
        wrong_usage("no range is given")
    complete = True
    try:
        with open_shards(settings) as shards, Progress(console=errors, transient=True) as shown:
            for each in wanted:
                task = shown.add_task(str(each), total=each.last - each.first + 1)
                found = refill_range(settings, shards, each, lambda done, task=task: shown.update(task, completed=done))
                out.print(f"  {each}: {found.messages:,} messages with {found.events:,} events", soft_wrap=True)
                if found.expired:
                    out.print(f"  {each}: the log does not have {found.expired:,} of them any more", style="red")
                for offset, reason in found.set_aside:
                    out.print(f"  {each}: offset {offset} can't be stored: {reason}", style="red", markup=False)
                complete = complete and not found.expired and not found.set_aside
    except (LogChanged, UnknownTopic, WarehouseUnavailable, KafkaException) as error:
        fail(str(error))
    return DONE if complete else FAILED
