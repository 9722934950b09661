"""doctor: what works today and hurts one day; each finding with its cause and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from confluent_kafka import KafkaException
from cyclopts import Parameter

from runtime.kafka.durability import IN_SYNC_MIN, REPLICAS_MIN, is_local_stack, topic_durability
from schemas.settings import Settings
from usage_billing.console import DONE, FAILED, out, settings_for
from warehouse.client import ClickHouseError, WarehouseUnavailable
from warehouse.foreign_views import foreign_views
from warehouse.projected import projection_faults
from warehouse.shards import open_shards

Verdict = Literal["ok", "warning", "failed"]
_STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check came to. cause: what is so. mend: what to do; both empty where it is ok."""

    name: str
    verdict: Verdict
    cause: str = ""
    mend: str = ""


Check = Callable[[Settings], Iterator[Finding]]
"""Yields what it finds; nothing: it is ok. What it raises is a finding too."""


def _durability(settings: Settings) -> Iterator[Finding]:
    """What an acknowledged event survives."""
    if is_local_stack(settings):
        return
    for topic in topic_durability(settings):
        if topic.weaknesses:
            yield Finding(
                "durability",
                "warning",
                f"{topic.name}: {', '.join(topic.weaknesses)}: an acknowledged event may be lost with one machine",
                f"move it to {REPLICAS_MIN} replicas (kafka-reassign-partitions), then set min.insync.replicas to "
                f"{IN_SYNC_MIN} and unclean.leader.election.enable to false (kafka-configs)",
            )


def _log_ends(settings: Settings) -> Iterator[Finding]:
    """Whether usage.events has ever lost its end."""
    query = "SELECT DISTINCT kafka_partition, next_offset FROM ingest_batches WHERE reason = 'earlier_epoch'"
    with open_shards(settings) as shards:
        rows = [row for client, own in shards.everywhere() for row in client.query(f"{query} AND {own}").result_rows]
        for partition, offset in rows:
            yield Finding(
                "log_ends",
                "warning",
                f"the log of partition {partition} lost its end, and went on at offset {offset}: events that were "
                "acknowledged beyond it and not stored by then are gone",
                "have producers send again what they sent in those minutes, with its ids: it counts once",
            )


def _projections(settings: Settings) -> Iterator[Finding]:
    """Whether ClickHouse's tables have all of catalog and ledger."""
    with open_shards(settings) as shards:
        for fault in projection_faults(shards, settings):
            yield Finding(
                "projections", "failed", str(fault), "look at /readyz of the sink, and at the table projection_failures"
            )


def _foreign_views(settings: Settings) -> Iterator[Finding]:
    """Whether views of others count twice what an insert repeats after an error."""
    with open_shards(settings) as shards:
        for view in (view for client, _ in shards.everywhere() for view in foreign_views(client)):
            if not view.remembers:
                yield Finding(
                    "foreign_views",
                    "warning",
                    f"the view {view.name} fills {view.target}, which adds the rows of a repeated insert again",
                    f"ALTER TABLE {view.target} MODIFY SETTING non_replicated_deduplication_window = 1000",
                )


CHECKS: dict[str, Check] = {
    "durability": _durability,
    "log_ends": _log_ends,
    "projections": _projections,
    "foreign_views": _foreign_views,
}
"""Name → check. A new one is added here."""


def findings(settings: Settings, checks: dict[str, Check]) -> list[Finding]:
    """Every check's, in their order."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += list(check(settings)) or [Finding(name, "ok")]
        except (KafkaException, WarehouseUnavailable, ClickHouseError, OSError) as error:
            found.append(Finding(name, "failed", str(error), "start it, or set its address right"))
    return found


def doctor(
    *, as_json: Annotated[bool, Parameter(name="--json", help="Print the findings as JSON.", negative="")] = False
) -> int:
    """Check a deployment and print each problem with its remedy; exit with 1 when there is one."""
    found = findings(settings_for("doctor"), CHECKS)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2, ensure_ascii=False))
    else:
        for each in found:
            out.print(f"{each.verdict:8} {each.name}", style=_STYLES[each.verdict])
            if each.cause:
                out.print(f"         {each.cause}\n         mend: {each.mend}", markup=False, soft_wrap=True)
    return DONE if all(each.verdict == "ok" for each in found) else FAILED
