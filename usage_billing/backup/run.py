"""backup: topics, then ClickHouse as of one watermark, then the manifest. restore: check all, then write.

The ledger is read first, so what its invoices count is in ClickHouse's copy, which is taken later; what ClickHouse did
not have by then is the tail of usage.events. So everything that was acknowledged before the backup began is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from runtime.kafka.admin import admin_client, create_topics
from runtime.kafka.groups import group_members
from runtime.private_files import make_private
from schemas.period import format_rfc3339
from schemas.settings import Settings
from schemas.topics import (
    BILLING_LEDGER,
    SINK_GROUP,
    USAGE_EVENTS,
    WEBHOOKS_GROUP,
    WORKERS_GROUP,
    topic_name,
)
from schemas.watermark import Watermark
from usage_billing.backup import tables, topics
from usage_billing.backup.files import check_file
from usage_billing.backup.manifest import Manifest, SavedTable, SavedTopic, read_manifest, write_manifest
from warehouse.client import ClickHouseError, connect, unavailable
from warehouse.epochs import UnknownTopic
from warehouse.migrate import migrate
from warehouse.settled import settled

_READ_SECONDS = 600
Report = Callable[[str, int], None]
"""Called with a part's name, and how many records or rows of it are done more than before."""


class BackupExists(Exception):
    """The directory holds something: a backup is never written over another."""


class ServicesRun(Exception):
    """Services would read or write what is being restored."""


class OtherPartitions(Exception):
    """Customers would be in other partitions than they were."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What is saved or restored."""

    kafka: bool = True
    clickhouse: bool = True


class SeveralShards(Exception):
    """Usage is on several servers, whose tables no one statement copies."""


def _require_one_shard(settings: Settings) -> None:
    if len(settings.clickhouse_dsns) > 1:
        raise SeveralShards("usage is on several ClickHouse servers: back each up with BACKUP, Kafka by mirroring")


def create_backup(settings: Settings, directory: Path, parts: Parts, report: Report) -> Manifest:
    """Write a backup into a directory that is new or empty. Services may run meanwhile.

    Raises BackupExists, IncompleteLog, DamagedBackup (ClickHouse broke off), KafkaException, WarehouseUnavailable,
    OSError.
    """
    _require_one_shard(settings)
    make_private(directory)
    if any(directory.iterdir()):
        raise BackupExists(f"{directory} is not empty")
    created_at = time.time_ns() // 1000
    saved_topics: list[SavedTopic] = []
    saved_tables: list[SavedTable] = []

    def save(topic: str, starts: dict[int, int] | None = None) -> None:
        saved = topics.save_topic(settings, topic, directory, starts)
        report(topic, saved.records)
        saved_topics.append(saved)

    for topic in topics.READ_ORDER if parts.kafka else ():
        if topic != USAGE_EVENTS:
            save(topic)
    with connect(settings, read_timeout_seconds=_READ_SECONDS) as client:
        watermark = _watermark(client, settings)
        if parts.kafka:
            save(USAGE_EVENTS, {} if watermark is None else dict(watermark.offsets))
        if parts.clickhouse:
            (directory / "clickhouse").mkdir(mode=0o700)
            try:
                for table in tables.SAVED:
                    saved = tables.save_table(client, table, directory, watermark)
                    report(table, saved.rows)
                    saved_tables.append(saved)
            except ClickHouseError as error:
                raise unavailable(error) from error
    manifest = Manifest(
        created_at=format_rfc3339(created_at),
        software=version("usage-billing"),
        watermark=None if watermark is None else watermark.as_json(),
        topics=saved_topics,
        tables=saved_tables,
    )
    write_manifest(directory, manifest)
    return manifest


def _watermark(client: tables.Client, settings: Settings) -> Watermark | None:
    try:
        return settled(client, settings)[1]
    except UnknownTopic:
        return None


def check_backup(directory: Path) -> Manifest:
    """Read all of it: sizes, checksums, the order of records, the form of rows. Raises DamagedBackup."""
    manifest = read_manifest(directory)
    for saved in (*manifest.topics, *manifest.tables):
        check_file(directory / saved.file, saved.size, saved.sha256)
    for topic in manifest.topics:
        for _ in topics.saved_records(directory, topic):
            pass
    for table in manifest.tables:
        tables.check_rows(directory, table)
    return manifest


def restore_backup(
    settings: Settings, directory: Path, parts: Parts, report: Report, *, going_on: bool = False
) -> Manifest:
    """Check the backup and the target, then write. going_on: after a restore that was interrupted.

    Raises DamagedBackup, NotEmpty, TableNotEmpty, ServicesRun, OtherPartitions: nothing was written then. NotRestored,
    RowsMissing, KafkaException, WarehouseUnavailable: part of it may have been.
    """
    _require_one_shard(settings)
    manifest = check_backup(directory)
    by_name = {saved.topic: saved for saved in manifest.topics} if parts.kafka else {}
    ordered = [by_name[topic] for topic in topics.WRITE_ORDER if topic in by_name]
    ledger = by_name.get(BILLING_LEDGER)
    if ledger is not None and len(ledger.partitions) != settings.event_partitions:
        raise OtherPartitions(
            f"the backup has {len(ledger.partitions)} partitions: set USAGE_EVENT_PARTITIONS={len(ledger.partitions)}"
        )
    _check_no_service(settings)
    if ordered:
        create_topics(settings)
    present = {saved.topic: topics.present_records(settings, directory, saved, going_on=going_on) for saved in ordered}
    if ordered or parts.clickhouse:
        migrate(settings)
    with connect(settings, read_timeout_seconds=_READ_SECONDS) as client:
        try:
            if parts.clickhouse:
                if not going_on:
                    tables.check_empty(client, (saved.table for saved in manifest.tables))
                for saved in manifest.tables:
                    tables.restore_table(client, directory, saved, lambda rows, table=saved.table: report(table, rows))
            if ordered:
                tables.empty_projections(client)
        except ClickHouseError as error:
            raise unavailable(error) from error
    for saved in ordered:
        topics.restore_topic(
            settings, directory, saved, present[saved.topic], lambda done, topic=saved.topic: report(topic, done)
        )
    return manifest


def _check_no_service(settings: Settings) -> None:
    admin = admin_client(settings)
    for group in (SINK_GROUP, WORKERS_GROUP, WEBHOOKS_GROUP):
        name = topic_name(settings, group)
        if members := group_members(admin, name):
            raise ServicesRun(f"{members} services are in the group {name}: stop all services, then restore")
