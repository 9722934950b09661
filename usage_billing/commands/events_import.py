"""events import: a table file → usage events, checked whole before the first is sent."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from schemas.decimals import EXACT, plain
from schemas.period import format_rfc3339
from schemas.usage_batch import decimal_of
from usage_billing.client import EventsRefused, NoAnswer
from usage_billing.commands.events import Address, Key, client_for
from usage_billing.commands.import_report import counted, located, readable_file, report_errors
from usage_billing.console import DONE, FAILED, errors, fail, out, settings_for
from usage_billing.importing.check import Chunk, LineError, checked_chunks
from usage_billing.importing.mapping import Mapped, WrongMapping, mapped, pairs
from usage_billing.importing.send import Sent, send_chunks
from usage_billing.importing.tables import Dialect, UnreadableTable, columns_of, format_of, rows

_ERRORS_KEPT_MAX = 100_000
_NAMES_PRINTED_MAX = 5
_EVENTS_SHOWN = 3


def import_(
    path: Annotated[
        Path, Parameter(help="The file, or - for standard input (then give --format).", allow_leading_hyphen=True)
    ],
    *,
    dry_run: Annotated[
        bool, Parameter(help="Check everything, show the first events, send nothing.", negative="")
    ] = False,
    map: Annotated[
        list[str] | None, Parameter(help="FIELD=COLUMN: which column a field is in; may be repeated.", negative="")
    ] = None,
    set: Annotated[
        list[str] | None, Parameter(help="FIELD=VALUE: the same for every row; may be repeated.", negative="")
    ] = None,
    properties: Annotated[str | None, Parameter(help="Columns that become properties, A,B; else all others.")] = None,
    id_from: Annotated[str | None, Parameter(help="Column whose text makes a row the same event as before.")] = None,
    id_prefix: Annotated[str, Parameter(help="Keeps rows apart from equal rows of another file.")] = "",
    time_zone: Annotated[str | None, Parameter(help="IANA zone of times without an offset, such as UTC.")] = None,
    separator: Annotated[str | None, Parameter(help="Between a CSV file's columns; by default a comma.")] = None,
    encoding: Annotated[str, Parameter(help="Of a text file.")] = "utf-8",
    format: Annotated[str | None, Parameter(help="csv, jsonl or parquet, when the name does not say.")] = None,
    errors_to: Annotated[Path | None, Parameter(help="Write every error as CSV: line, column, code, message.")] = None,
    key: Key = None,
    address: Address = None,
) -> int:
    """Import a .csv, .jsonl or .parquet file (.gz and .zst too) with an event's fields as columns.

    Every row is checked before the first is sent. A row is known by what it says, so importing a file again, after a
    correction or with rows appended, counts each row once. A column that is no field of an event becomes a property.
    """
    settings = settings_for("events-import")
    dialect = Dialect("\t" if separator == "\\t" else separator, encoding)
    with readable_file(path) as file:
        try:
            kind = f".{format.lower()}" if format else format_of(path)
            mapping = mapped(
                columns_of(file, kind, dialect),
                renames=pairs(map or (), "--map"),
                constants=pairs(set or (), "--set"),
                properties=None if properties is None else [name.strip() for name in properties.split(",")],
                time_zone=time_zone,
                id_from=id_from,
                guarded=kind == ".csv",
            )
            summary, found = _checked(partial(_chunks, file, kind, dialect, mapping, id_prefix))
        except (WrongMapping, UnreadableTable, OSError) as reason:
            fail(located(path, reason))
        if found:
            report_errors(path, found, errors_to)
            fail(f"{path}: nothing was sent; {counted(len(found), 'error')}")
        if not summary.events:
            fail(f"{path}: there is no row below the columns")
        if dry_run:
            summary.show()
            out.print(f"nothing was sent; {counted(summary.events, 'event')} would be")
            return DONE
        sent = Sent()
        client = client_for(settings, key, address, on_wait=_said_once())
        try:
            with client, _bar(summary.events) as progress:
                chunks = _chunks(file, kind, dialect, mapping, id_prefix, found)
                send_chunks(client, chunks, mapping, sent, progress)
        except (EventsRefused, NoAnswer, UnreadableTable, OSError) as reason:
            _tell(sent, summary)
            fail(f"{located(path, reason)}; it is safe to import the file again")
    _tell(sent, summary)
    if sent.errors:
        report_errors(path, sent.errors, errors_to)
        return FAILED
    return DONE


# -- checking ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Summary:
    """What a file holds. totals: event_name → events, Σ value. shown: the first events as they would be sent."""

    events: int = 0
    repeated: int = 0
    totals: dict[str, tuple[int, Decimal]] = field(default_factory=dict[str, tuple[int, Decimal]])
    earliest: int | None = None
    latest: int | None = None
    shown: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, chunk: Chunk) -> None:
        self.events += len(chunk.events)
        self.repeated += chunk.repeated
        for name, value in zip(chunk.checked.event_name, chunk.checked.value, strict=True):
            count, total = self.totals.get(name, (0, Decimal(0)))
            self.totals[name] = (count + 1, total if value is None else EXACT.add(total, decimal_of(value)))
        earliest, latest = min(chunk.checked.timestamp), max(chunk.checked.timestamp)
        self.earliest = earliest if self.earliest is None else min(self.earliest, earliest)
        self.latest = latest if self.latest is None else max(self.latest, latest)
        self.shown += chunk.events[: _EVENTS_SHOWN - len(self.shown)]

    def show(self) -> None:
        for event in self.shown:
            print(msgspec.json.encode(event).decode())
        for name, (count, total) in sorted(self.totals.items()):
            out.print(f"{name}: {counted(count, 'event')}, sum of values {plain(total.normalize())}", markup=False)
        if self.earliest is not None and self.latest is not None:
            out.print(f"from {format_rfc3339(self.earliest)} to {format_rfc3339(self.latest)}", markup=False)


def _chunks(
    file: Path, kind: str, dialect: Dialect, mapping: Mapped, id_prefix: str, found: list[LineError]
) -> Iterator[Chunk]:
    return checked_chunks(rows(file, kind, dialect), mapping, found, id_prefix=id_prefix)


def _checked(chunks: Callable[[list[LineError]], Iterator[Chunk]]) -> tuple[_Summary, list[LineError]]:
    """The whole file, read once; errors beyond a bound are not looked for."""
    summary, found = _Summary(), list[LineError]()
    for chunk in chunks(found):
        summary.add(chunk)
        if len(found) > _ERRORS_KEPT_MAX:
            break
    return summary, found


# -- telling -----------------------------------------------------------------------------------------------------------


def _said_once() -> Callable[[str], None]:
    """Tell the first reason why the gateway has to be asked again; a row of them says no more."""
    known = set[str]()

    def say(reason: str) -> None:
        if not known:
            errors.print(f"the gateway does not answer, trying again for a minute: {reason}", markup=False)
        known.add(reason)

    return say


@contextmanager
def _bar(total: int) -> Generator[Callable[[int], None]]:
    with Progress(TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("importing", total=total)
        yield lambda events: bar.update(task, advance=events)


def _tell(sent: Sent, summary: _Summary) -> None:
    out.print(f"{counted(sent.accepted, 'event')} accepted")
    if summary.repeated:
        out.print(f"{counted(summary.repeated, 'event')} of the file repeat an id, and count once", markup=False)
    if sent.unmatched:
        names = _some("without a meter", sent.names) + _some("unknown customers", sent.customers)
        out.print(
            f"{counted(sent.unmatched, 'event')} unmatched: stored, and not billed as things are{names}", markup=False
        )


def _some(label: str, names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return ""
    more = f" and {len(listed) - _NAMES_PRINTED_MAX} more" if len(listed) > _NAMES_PRINTED_MAX else ""
    return f"; {label}: {', '.join(listed[:_NAMES_PRINTED_MAX])}{more}"
