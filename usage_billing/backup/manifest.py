"""manifest.json: what a backup holds, so that all of it can be checked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from usage_billing.backup.files import DamagedBackup

FORMAT = "usage-billing-backup"
VERSION = 1
_NAME = "manifest.json"


class SavedPartition(msgspec.Struct, frozen=True):
    """Offsets that were read, half-open; records: how many messages they held (compaction leaves gaps)."""

    partition: int
    first_offset: int
    next_offset: int
    records: int


class SavedTopic(msgspec.Struct, frozen=True):
    """topic: without USAGE_TOPIC_PREFIX. file: path in the backup. size: bytes. sha256: hex, of the file."""

    topic: str
    file: str
    size: int
    sha256: str
    partitions: list[SavedPartition]

    @property
    def records(self) -> int:
        return sum(each.records for each in self.partitions)


class SavedTable(msgspec.Struct, frozen=True):
    """A table of ClickHouse. columns: how many. rows: copies that a merge would have removed count too."""

    table: str
    file: str
    size: int
    sha256: str
    columns: int
    rows: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """created_at: RFC 3339. software: its version. watermark: up to where the tables have usage.events, as invoices
    have it; None: no sink had read the topic. topics, tables: empty where they were left out.
    """

    format: str = FORMAT
    version: int = VERSION
    created_at: str
    software: str
    watermark: dict[str, Any] | None
    topics: list[SavedTopic]
    tables: list[SavedTable]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Last of all: a backup without it is not whole."""
    aside = directory / f"{_NAME}.part"
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    aside.chmod(0o600)
    aside.rename(directory / _NAME)


def read_manifest(directory: Path) -> Manifest:
    """Raises DamagedBackup."""
    path = directory / _NAME
    try:
        fields = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise DamagedBackup(f"{path}: {error.strerror}; without it a backup is not whole") from error
    except msgspec.DecodeError as error:
        raise DamagedBackup(f"{path}: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise DamagedBackup(f"{path} describes no backup of usage-billing")
    if fields.get("version") != VERSION:
        raise DamagedBackup(f"{path}: format version {fields.get('version')}; this version reads {VERSION}")
    try:
        return msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as error:
        raise DamagedBackup(f"{path}: {error}") from error
