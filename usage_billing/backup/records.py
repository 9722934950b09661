"""a Kafka record ⇄ a line of JSON. Pure.

Text stays text, so that a line can be read and searched; bytes that are not UTF-8 are {"base64": "…"}.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import msgspec

from usage_billing.backup.files import DamagedBackup


@dataclass(frozen=True, slots=True)
class Record:
    """offset: where it lay. timestamp: ms; None: it has none. headers: in order, names may repeat."""

    partition: int
    offset: int
    timestamp: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    def says_same_as(self, other: Record) -> bool:
        """Whatever its offset and time."""
        mine = (self.partition, self.key, self.value, self.headers)
        return mine == (other.partition, other.key, other.value, other.headers)


def encode(record: Record) -> bytes:
    return msgspec.json.encode(
        {
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": _written(record.key),
            "headers": [[name, _written(value)] for name, value in record.headers],
            "value": _written(record.value),
        }
    )


def decode(line: bytes) -> Record:
    """Raises DamagedBackup."""
    try:
        fields: dict[str, Any] = msgspec.json.decode(line)
        return Record(
            int(fields["partition"]),
            int(fields["offset"]),
            None if fields["timestamp"] is None else int(fields["timestamp"]),
            _read(fields["key"]),
            _read(fields["value"]),
            tuple((str(name), _read(value)) for name, value in fields["headers"]),
        )
    except (msgspec.DecodeError, binascii.Error, KeyError, TypeError, ValueError) as error:
        raise DamagedBackup(f"a line is no record: {error}") from error


def _written(data: bytes | None) -> str | dict[str, str] | None:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _read(written: Any) -> bytes | None:
    if written is None:
        return None
    return written.encode() if isinstance(written, str) else base64.b64decode(written["base64"], validate=True)
