"""Records as released versions stored them are read today, field by field.

tests/stored_formats/VERSION.jsonl has a record of each kind: format, key and value as stored (Base64), and the fields
that the version itself read. VERSION.migrations has the checksums of its migrations. Add both with each release;
existing files never change.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from catalog import record as catalog
from ledger import records
from schemas import alert, dead_letter, repair, totals, usage_batch, usage_void, webhook_delivery
from warehouse.migrate import migrations

VERSIONS = sorted((Path(__file__).parents[1] / "stored_formats").glob("*.jsonl"))


def _catalog(_key: bytes, value: bytes) -> dict[str, Any]:
    found = catalog.decode(value)
    return {
        "kind": str(found.kind),
        "expected_version": found.expected_version,
        "written_at": found.written_at,
        "state": found.state.model_dump(mode="json"),
    }


DECODERS: dict[str, Callable[[bytes, bytes], Any]] = {
    "alert": lambda _key, value: alert.decode(value),
    "catalog": _catalog,
    "dead_letter": lambda _key, value: dead_letter.decode(value),
    "ledger": lambda _key, value: records.decode(value),
    "repair": lambda _key, value: repair.decode(value),
    "total": totals.decode,
    "usage_batch": lambda _key, value: asdict(usage_batch.decode(value)),
    "usage_void": lambda _key, value: asdict(usage_void.decode(value)),
    "webhook_delivery": webhook_delivery.decode,
}


def stored() -> Iterator[Any]:
    for path in VERSIONS:
        for number, line in enumerate(path.read_text().splitlines()):
            record = json.loads(line)
            yield pytest.param(record, id=f"{path.stem} {record['format']} {number}")


def lost(expected: Any, found: Any, path: str = "") -> list[str]:
    """Paths of the expected fields that are missing or differ; fields that were added are fine."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            problem
            for name, value in expected.items()
            for problem in (lost(value, found[name], f"{path}.{name}") if name in found else [f"{path}.{name}"])
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [problem for index, pair in pairs for problem in lost(*pair, f"{path}[{index}]")]
    return [] if expected == found else [f"{path}: {expected!r} is read as {found!r}"]


@pytest.mark.parametrize("record", list(stored()))
def test_a_record_of_a_released_version_is_read_as_it_was(record: dict[str, Any]):
    key, value = base64.b64decode(record["key"]), base64.b64decode(record["value"])
    found = json.loads(msgspec.json.encode(DECODERS[record["format"]](key, value)))
    assert lost(record["expected"], found) == []


def test_every_format_has_a_record():
    first = VERSIONS[0].read_text().splitlines()
    assert {json.loads(line)["format"] for line in first} == set(DECODERS)


@pytest.mark.parametrize("path", sorted(VERSIONS[0].parent.glob("*.migrations")), ids=lambda path: path.stem)
def test_a_database_of_a_released_version_is_migrated(path: Path):
    """`migrate` refuses a database whose migrations it does not know as they were applied."""
    released = {(name, checksum) for checksum, name in map(str.split, path.read_text().splitlines())}
    known = frozenset[tuple[str, str]]().union(*(migration.applied_as for migration in migrations()))
    assert released - known == set()
