"""file → rows of texts: CSV, JSON lines or Parquet, compressed or not, one row at a time.

Every cell is a text as the file spells it, so that decimals stay exact; a cell that is empty or null is absent.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import zstandard
from msgspec import Raw

FORMATS = (".csv", ".jsonl", ".ndjson", ".parquet")
_COMPRESSIONS = (".gz", ".zst")
_PARQUET_ROWS = 50_000
# A cell is at most a set of properties in JSON; a quote that is never closed must not read a whole file as one cell.
_CELL_LENGTH_MAX = 1 << 20
_SEPARATORS = ",;\t|"

_object_decoder = msgspec.json.Decoder(dict[str, Raw])
_text_decoder = msgspec.json.Decoder(str)


class UnreadableTable(Exception):
    """The file, or a line of it, is no table of the kind that its name says.

    line: of the file, from 1, or the row's number in a Parquet file; None for the file as a whole.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Row:
    """cells: column → text. properties: of a column `properties` that holds an object, else empty."""

    line: int
    cells: Mapping[str, str]
    properties: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written. separator: None takes a comma, or what a first line `sep=…` says."""

    separator: str | None = None
    encoding: str = "utf-8"


def format_of(path: Path) -> str:
    """The suffix that says how the file is written, without a compression's. Raises UnreadableTable."""
    name = path.with_suffix("") if path.suffix.lower() in _COMPRESSIONS else path
    suffix = name.suffix.lower()
    if suffix not in FORMATS:
        raise UnreadableTable(
            f"{suffix or 'no suffix'}: .csv, .jsonl or .parquet is expected, with .gz or .zst if packed"
        )
    return suffix


def columns_of(path: Path, kind: str, dialect: Dialect) -> list[str] | None:
    """The columns that the file names; None for JSON lines, each of which has its own. Raises as rows does."""
    if kind == ".csv":
        with _unpacked(path) as source:
            return _header(_decoded(source, dialect.encoding), dialect)[0]
    if kind == ".parquet":
        import polars

        try:
            return polars.scan_parquet(path).collect_schema().names()
        except (polars.exceptions.PolarsError, OSError) as reason:
            raise UnreadableTable(f"not a Parquet file that can be read: {reason}") from reason
    return None


def rows(path: Path, kind: str, dialect: Dialect) -> Iterator[Row]:
    """The file's rows in order. kind: one of FORMATS. Raises UnreadableTable, OSError."""
    if kind == ".parquet":
        if path.suffix.lower() in _COMPRESSIONS:
            raise UnreadableTable("a Parquet file is compressed inside; unpack it first")
        return _parquet_rows(path)
    return _csv_rows(path, dialect) if kind == ".csv" else _json_rows(path)


@contextmanager
def _unpacked(path: Path) -> Generator[IO[bytes]]:
    try:
        with path.open("rb") as packed:
            match path.suffix.lower():
                case ".gz":
                    yield cast("IO[bytes]", gzip.GzipFile(fileobj=packed))
                case ".zst":
                    with zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as unpacked:
                        yield cast("IO[bytes]", io.BufferedReader(cast("io.RawIOBase", unpacked)))
                case _:
                    yield packed
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as reason:
        raise UnreadableTable(f"the file is damaged: {reason}") from reason


# -- CSV ---------------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, dialect: Dialect) -> Iterator[Row]:
    csv.field_size_limit(_CELL_LENGTH_MAX)
    with _unpacked(path) as source:
        columns, records = _header(_decoded(source, dialect.encoding), dialect)
        for line, cells in records:
            if not any(cells):
                continue  # a row without any cell: a blank line, or one that a spreadsheet left
            if len(cells) != len(columns):
                raise UnreadableTable(f"{len(cells)} cells, and the first line names {len(columns)} columns", line)
            yield Row(line, {name: cell for name, cell in zip(columns, cells, strict=True) if cell})


def _header(lines: Iterator[str], dialect: Dialect) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The columns, and the records below them."""
    first = next(lines, None)
    if first is None or not first.strip():
        raise UnreadableTable("the file is empty: its first line must name the columns")
    skipped, separator = 0, dialect.separator or ","
    if first.lower().startswith("sep=") and len(first.strip()) == len("sep=,"):
        skipped, separator, first = 1, dialect.separator or first[4], next(lines, "")
    records = _records(csv.reader(_chained(first, lines), delimiter=separator, strict=True), skipped)
    _, header = next(records, (0, list[str]()))
    columns = [name.strip() for name in header]
    _check_columns(columns, first, separator)
    return columns, records


def _decoded(source: IO[bytes], encoding: str) -> Iterator[str]:
    """Lines as texts; a byte order mark is taken off."""
    try:
        wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    except LookupError:
        raise UnreadableTable(f"there is no encoding {encoding!r}") from None
    if wide:  # a line's end is no single byte there, so the whole is decoded in one go
        yield from _wide_lines(source, encoding)
        return
    for number, line in enumerate(source, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 and encoding == "utf-8" else encoding)
        except UnicodeDecodeError as reason:
            message = f"not {encoding}: {reason.object[reason.start : reason.end]!r}; give --encoding (windows-1252?)"
            raise UnreadableTable(message, number) from reason
        if "\0" in text:
            raise UnreadableTable("a NUL character: is this a text file, in this encoding?", number)
        yield text


def _wide_lines(source: IO[bytes], encoding: str) -> Iterator[str]:
    lines = io.TextIOWrapper(source, encoding, newline="")
    try:
        yield from lines
    except UnicodeError as reason:
        raise UnreadableTable(f"not {encoding}: {reason}") from reason
    finally:
        if not source.closed:
            lines.detach()  # the file is its opener's to close


def _chained(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _records(reader: Any, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins on, cells) of each record."""
    while True:
        line = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as reason:
            raise UnreadableTable(str(reason), line) from reason
        yield line, cells


def _check_columns(columns: list[str], first: str, separator: str) -> None:
    if len(columns) == 1:
        other = max(_SEPARATORS, key=first.count)
        if other != separator and first.count(other):
            raise UnreadableTable(f"one column only; columns seem to be separated by {other!r}: give --separator", 1)
    doubled = sorted({name for name in columns if name and columns.count(name) > 1})
    if doubled:
        raise UnreadableTable(f"columns are named twice: {', '.join(doubled)}", 1)


# -- JSON lines --------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    with _unpacked(path) as source:
        for line, text in enumerate(source, 1):
            stripped = text.removeprefix(b"\xef\xbb\xbf").strip() if line == 1 else text.strip()
            if not stripped:
                continue
            try:
                fields = _object_decoder.decode(stripped)
                cells = _cells(fields)
                properties = _cells(_object_decoder.decode(fields["properties"])) if _is_object(fields) else {}
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as reason:
                raise UnreadableTable(f"not a JSON object: {reason}", line) from reason
            if properties:
                del cells["properties"]
            yield Row(line, cells, properties)


def _is_object(fields: Mapping[str, Raw]) -> bool:
    return bytes(fields.get("properties", b""))[:1] == b"{"


def _cells(fields: Mapping[str, Raw]) -> dict[str, str]:
    """A text is what it says, anything else what JSON spells; null is absent."""
    cells: dict[str, str] = {}
    for name, raw in fields.items():
        spelled = bytes(raw)
        if spelled != b"null":
            cells[name] = _text_decoder.decode(raw) if spelled[:1] == b'"' else spelled.decode()
    return cells


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Row]:
    import polars

    try:
        table = polars.scan_parquet(path)
        spellings = {name: _spelling(kind) for name, kind in table.collect_schema().items()}
        start = 0
        while (chunk := table.slice(start, _PARQUET_ROWS).collect()).height:
            for number, row in enumerate(chunk.iter_rows(named=True), start + 1):
                yield _parquet_row(number, row, spellings)
            start += chunk.height
    except (polars.exceptions.PolarsError, OSError) as reason:
        raise UnreadableTable(f"not a Parquet file that can be read: {reason}") from reason


def _parquet_row(number: int, row: Mapping[str, Any], spellings: Mapping[str, Callable[[Any], str]]) -> Row:
    cells, properties = dict[str, str](), dict[str, str]()
    for name, value in row.items():
        if value is None:
            continue
        fields = _named_parts(value) if name == "properties" else None
        if fields is not None:
            properties = {key: _spelled(part) for key, part in fields.items() if part is not None}
        else:
            cells[name] = spellings[name](value)
    return Row(number, cells, properties)


def _named_parts(value: Any) -> dict[str, Any] | None:
    """A struct's fields, or a map's, which polars reads as a list of pairs; None: it is neither."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    if not isinstance(value, list):
        return None
    pairs = cast("list[Any]", value)
    if not all(isinstance(pair, dict) and pair.keys() == {"key", "value"} for pair in pairs):
        return None
    return {str(pair["key"]): pair["value"] for pair in pairs}


def _spelling(kind: Any) -> Callable[[Any], str]:
    import polars

    return _spelled_single if kind == polars.Float32 else _spelled


def _spelled_single(value: float) -> str:
    """A 32-bit float by its shortest spelling: 0.1, and not the double that it is widened to."""
    import numpy

    return (
        _spelled(value) if not math.isfinite(value) else numpy.format_float_positional(numpy.float32(value), trim="-")
    )


def _spelled(value: Any) -> str:
    """A value of a typed table as JSON spells it; floats by their shortest spelling, never rounded."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case datetime() | date():
            return value.isoformat()
        case float() if math.isfinite(value):
            import numpy

            return numpy.format_float_positional(value, trim="-")
        case dict() | list():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)
