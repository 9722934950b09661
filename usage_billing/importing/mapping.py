"""row of a table → usage event, as a user says which column is which. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from usage_billing.importing.tables import Row
from usage_billing.postgres_time import from_postgres

FIELDS = ("customer_id", "event_name", "timestamp", "value", "event_id")
REQUIRED = ("customer_id", "event_name", "timestamp")
# What our own export adds to an event: where it lies in the log is no property of it.
_EXPORTED = ("received_at", "epoch", "partition", "offset", "index")
_GUARDED = re.compile(r"'(?=[=+\-@\t\r'])")  # what the export puts before a cell that a spreadsheet would run
_LOCAL = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(\.\d+)?)?", re.ASCII)


class WrongMapping(Exception):
    """What was asked for does not fit the file's columns, or itself."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """How rows become events.

    columns: field → column. constants: field → text. properties: columns that become properties, None for all others.
    time_zone: of times without an offset, None to refuse them. exported: whether the file is our own export; None: each
    row says. guarded: whether an export of that format puts a ' before cells.
    """

    columns: Mapping[str, str]
    constants: Mapping[str, str] = field(default_factory=dict[str, str])
    properties: Sequence[str] | None = None
    time_zone: ZoneInfo | None = None
    exported: bool | None = False
    guarded: bool = False

    def column_of(self, of_field: str) -> str:
        """Where an error of the field is to be looked for."""
        return self.columns.get(of_field, of_field.removeprefix("properties."))


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """`A=B` texts by A. Raises WrongMapping."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, other = text.partition("=")
        if not (name and equals and other):
            raise WrongMapping(f"{option} {text}: write NAME=VALUE")
        found[name] = other
    return found


def mapped(
    columns: Sequence[str] | None,
    *,
    renames: Mapping[str, str],
    constants: Mapping[str, str],
    properties: Sequence[str] | None = None,
    time_zone: str | None = None,
    id_from: str | None = None,
    guarded: bool = False,
) -> Mapped:
    """How a file with these columns becomes events.

    columns: None when each row has its own, and nothing can be missing from all.
    renames: pairs of a field and a column, either side first. Raises WrongMapping, which names what is missing.
    """
    exported = None if columns is None else _is_export(columns)
    if columns is None:
        columns = [*FIELDS, *renames.keys(), *renames.values(), *(properties or ()), *([id_from] if id_from else [])]
    unknown = sorted(set(constants) - set(FIELDS))
    if unknown:
        raise WrongMapping(f"--set {unknown[0]}: an event has {', '.join(FIELDS)}")
    sources = {name: name for name in FIELDS if name in columns and name not in constants}
    for left, right in renames.items():
        of_field, column = (
            (left, right) if left in FIELDS and (right in columns or right not in FIELDS) else (right, left)
        )
        if of_field not in FIELDS:
            raise WrongMapping(f"--map {left}={right}: an event has {', '.join(FIELDS)}")
        if column not in columns:
            raise WrongMapping(f"--map {left}={right}: there is no column {column}; there are {', '.join(columns)}")
        sources[of_field] = column
    if id_from is not None:
        if id_from not in columns:
            raise WrongMapping(f"--id-from {id_from}: there is no such column; there are {', '.join(columns)}")
        sources["event_id"] = id_from
    missing = [name for name in REQUIRED if name not in sources and name not in constants]
    if missing:
        raise WrongMapping(
            f"columns are missing: {', '.join(missing)}; there are {', '.join(columns)} "
            "(--map FIELD=COLUMN names one, --set FIELD=VALUE gives a value)"
        )
    absent = [name for name in properties or () if name not in columns]
    if absent:
        raise WrongMapping(f"--properties {absent[0]}: there is no such column; there are {', '.join(columns)}")
    zone = zone_of(time_zone)
    return Mapped(sources, dict(constants), properties, zone, exported, guarded)


def zone_of(name: str | None) -> ZoneInfo | None:
    """Raises WrongMapping."""
    try:
        return None if name is None else ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise WrongMapping(f"--time-zone {name}: write an IANA name, such as Europe/Vienna or UTC") from None


def event_of(row: Row, mapping: Mapped) -> dict[str, Any]:
    """The row's event, in the fields of the API; what is absent in the row is left out."""
    exported = _is_export(row.cells) if mapping.exported is None else mapping.exported
    cells = {name: _unguarded(cell) for name, cell in row.cells.items()} if exported and mapping.guarded else row.cells
    event: dict[str, Any] = dict(mapping.constants)
    for of_field, column in mapping.columns.items():
        if (cell := cells.get(column)) is not None and cell != "":
            event[of_field] = cell
    if "timestamp" in event:
        event["timestamp"] = instant(event["timestamp"], mapping.time_zone)
    properties = _properties(row, cells, mapping, exported=exported)
    if properties:
        event["properties"] = properties
    return event


def _is_export(columns: Collection[str]) -> bool:
    return all(name in columns for name in ("customer_id", *_EXPORTED))


def _properties(row: Row, cells: Mapping[str, str], mapping: Mapped, *, exported: bool) -> dict[str, str]:
    if mapping.properties is not None:
        return {name: cells[name] for name in mapping.properties if cells.get(name)}
    taken = {*mapping.columns.values(), *(_EXPORTED if exported else ())}
    others = {name: cell for name, cell in cells.items() if name not in taken}
    spelled = others.get("properties", "")
    if spelled.lstrip()[:1] == "{":  # a column that holds all properties as JSON, as our export has
        try:
            fields = msgspec.json.decode(spelled.encode(), type=dict[str, str | None])
        except (msgspec.MsgspecError, UnicodeEncodeError):
            pass  # a text that only begins like one: a property of that name
        else:
            del others["properties"]
            others |= {name: text for name, text in fields.items() if text is not None}
    return {**others, **row.properties}


def _unguarded(cell: str) -> str:
    return _GUARDED.sub("", cell, count=1) if cell[:1] == "'" else cell


def instant(text: str, time_zone: ZoneInfo | None) -> str:
    """RFC 3339 where the text can be read as an instant; else the text, for the check to name."""
    local = _LOCAL.fullmatch(text.strip())
    if local is None:
        return from_postgres(text)
    if time_zone is None:
        return text
    try:
        moment = datetime.fromisoformat(f"{local[1]}T{local[2] or '00:00'}").replace(tzinfo=time_zone)
        # A local time that a clock skipped is read by the offset before, which moves it forward.
        utc = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    return utc.replace(tzinfo=None).isoformat(timespec="seconds") + (local[3] or "") + "Z"
