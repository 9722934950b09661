"""ClickHouse's HTTP interface → chDB, the same engine in this process.

A stand-in for the server process, not for the engine: a client (clickhouse-connect, curl) sees queries, parameters,
settings, sessions, formats, compressed bodies and error codes as a server's. There is one user, `default`, without a
password; users, row policies and replication need a server.
"""

import base64
import contextlib
import email
import gzip
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import parse_qsl, urlsplit

import lz4.frame
import zstandard
from chdb import ChdbError
from chdb.state.sqlitelike import Connection, StreamingResult

from deploy.local.clickhouse_sql import Statement, parse, quote, quote_identifier
from deploy.local.process import HOST

_SERVER_NAME = "chdb"
_IDLE_SECONDS_MAX = 300.0
_DRAIN_SECONDS_MAX = 10.0
_SESSION_SECONDS_DEFAULT = 60.0
_SESSION_SECONDS_MAX = 3600.0
_SPOOL_DIR = Path("/dev/shm")
_FORM_BYTES_MAX = 64 * 1024 * 1024

# A streamed result comes as one complete document per block. Documents of these formats may be put behind each other;
# of the others (JSON, Arrow, Parquet …) the engine makes one document in memory.
_STREAMED = {
    name: header_lines
    for header_lines, names in {
        0: ("Native", "RowBinary", "CSV", "TSV", "TabSeparated", "TSVRaw", "JSONEachRow", "JSONCompactEachRow"),
        1: ("CSVWithNames", "TSVWithNames", "TabSeparatedWithNames"),
        2: ("CSVWithNamesAndTypes", "TSVWithNamesAndTypes", "TabSeparatedWithNamesAndTypes"),
    }.items()
    for name in names
}
_CONTENT_TYPES = {
    "Native": "application/octet-stream",
    "RowBinary": "application/octet-stream",
    "Arrow": "application/octet-stream",
    "ArrowStream": "application/octet-stream",
    "Parquet": "application/octet-stream",
    "Avro": "application/octet-stream",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
}
# Parameters of the request itself; every other one is a setting of the engine.
_RESERVED = frozenset(
    {
        "query",
        "database",
        "default_format",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "user",
        "password",
        "quota_key",
        "role",
        "wait_end_of_query",
        "buffer_size",
        "compress",
        "decompress",
        "stacktrace",
        "client_protocol_version",
    }
)
# Codes with a status of their own (as the server maps them); the others are 500.
_STATUS_OF_CODE = {
    **dict.fromkeys((192, 193, 194, 516), 403),
    **dict.fromkeys((6, 26, 27, 36, 38, 41, 42, 43, 53, 62, 72, 115, 117, 130, 131, 386, 441, 456, 457), 400),
    **dict.fromkeys((16, 44, 46, 47, 50, 57, 60, 81), 404),
    **dict.fromkeys((48, 1), 501),
    **dict.fromkeys((159, 160), 408),
    **dict.fromkeys((74, 76, 209, 210), 503),
    206: 411,
}
# What a GET may do: the server refuses to change anything by it.
_READING = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "CHECK"})
_CODE = re.compile(r"Code: (\d+)\. ")


class RequestError(Exception):
    """A request that is refused before the engine sees it: code as of the server's ErrorCodes, name in capitals."""

    def __init__(self, code: int, message: str, name: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")


@dataclass
class _Session:
    """Connection that outlives a request, with its temporary tables; one request at a time."""

    connection: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)
    expires_at: float = 0.0


@dataclass(frozen=True)
class _Outcome:
    """Documents of a result in order, and the counts known when the first one is sent.

    stream: what they are read from, if they are not all here; to be cancelled when the client goes away.
    """

    chunks: Iterator[bytes]
    stream: StreamingResult | None = None
    rows_read: int = 0
    bytes_read: int = 0
    rows_written: int = 0
    bytes_written: int = 0


class Engine:
    """The one chDB engine of this process and its connections.

    A connection is a context of its own (database, settings, parameters) and connections run at the same time, so a
    request gets a fresh one (about 1 ms): nothing leaks from one request to another.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._anchor = Connection(self._path)  # The engine lives as long as one connection is open.
        self._sessions: dict[str, _Session] = {}
        self._sessions_lock = threading.Lock()
        self.version = self._scalar("SELECT version()")
        self.timezone = self._scalar("SELECT timezone()")

    def _scalar(self, sql: str) -> str:
        return cast(bytes, self._anchor.query(sql, "TSVRaw").bytes()).decode().strip()

    def close(self) -> None:
        for session in self._sessions.values():
            session.connection.close()
        self._anchor.close()

    @contextlib.contextmanager
    def connection(self, parameters: Mapping[str, str]) -> Generator[Connection]:
        """A connection with the request's database, settings and parameters: fresh, or that of the named session."""
        session_id = parameters.get("session_id")
        if session_id is None:
            connection = Connection(self._path)
            try:
                _use(connection, parameters)
                yield connection
            finally:
                connection.close()
            return
        session = self._session(session_id, parameters)
        if not session.lock.acquire(blocking=False):
            raise RequestError(373, f"Session {session_id} is locked by a concurrent client.", "SESSION_IS_LOCKED")
        applied: list[str] = []
        try:
            _use(session.connection, parameters, applied)
            yield session.connection
        finally:
            # Settings are the request's, not the session's; parameters are only ever overwritten.
            for name in applied:
                session.connection.query(f"SET {name} = DEFAULT")
            session.expires_at = time.monotonic() + _session_seconds(parameters)
            session.lock.release()

    def _session(self, session_id: str, parameters: Mapping[str, str]) -> _Session:
        now = time.monotonic()
        with self._sessions_lock:
            for name, session in list(self._sessions.items()):
                if session.expires_at < now and not session.lock.locked():
                    self._sessions.pop(name).connection.close()
            found = self._sessions.get(session_id)
            if found is None:
                if parameters.get("session_check") == "1":
                    raise RequestError(372, f"Session {session_id} not found", "SESSION_NOT_FOUND")
                found = self._sessions[session_id] = _Session(Connection(self._path))
            found.expires_at = now + _session_seconds(parameters)
            return found


def _session_seconds(parameters: Mapping[str, str]) -> float:
    return min(float(parameters.get("session_timeout", _SESSION_SECONDS_DEFAULT)), _SESSION_SECONDS_MAX)


def _use(connection: Connection, parameters: Mapping[str, str], applied: list[str] | None = None) -> None:
    """Put database, settings and query parameters into the connection; applied: gets the settings' names."""
    if database := parameters.get("database"):
        connection.query(f"USE {quote_identifier(database)}")
    for name, value in parameters.items():
        if name in _RESERVED:
            continue
        if not name.isidentifier():
            raise RequestError(115, f"Unknown setting '{name}'.", "UNKNOWN_SETTING")
        connection.query(f"SET {name} = {quote(value)}")
        if applied is not None and not name.startswith("param_"):
            applied.append(name)


def _insert(connection: Connection, statement: Statement, spooled: Path) -> _Outcome:
    head = statement.head.decode()
    settings = ""
    # FROM INFILE stands before SETTINGS.
    if at := re.search(r"\bSETTINGS\b(?=[^'\"`)]*=)", head, re.IGNORECASE):
        head, settings = head[: at.start()], head[at.start() :]
    result = connection.query(f"{head} FROM INFILE {quote(str(spooled))} {settings} FORMAT {statement.format}")
    return _Outcome(
        iter(()), rows_written=int(result.rows_written() or 0), bytes_written=int(result.bytes_written() or 0)
    )


def _select(connection: Connection, sql: str, output_format: str, *, whole: bool, streamable: bool) -> _Outcome:
    header_lines = _STREAMED.get(output_format)
    if not whole and streamable and header_lines is not None:
        stream = connection.send_query(sql, output_format)
        # The first block is computed here, so that most errors come before the status line is sent.
        first = next(stream, None)
        if first is not None:
            head = cast(bytes, first.bytes())
            return _Outcome(_join(head, stream, output_format, header_lines), stream)
        if header_lines == 0:
            return _Outcome(iter(()))
        # An empty result has a header all the same; only the whole document has it.
    result = connection.query(sql, output_format)
    document = cast(bytes, result.bytes() or b"")
    return _Outcome(
        iter((document,)),
        rows_read=int(result.storage_rows_read() or 0),
        bytes_read=int(result.storage_bytes_read() or 0),
        rows_written=int(result.rows_written() or 0),
        bytes_written=int(result.bytes_written() or 0),
    )


def _join(head: bytes, rest: Iterator[Any], output_format: str, header_lines: int) -> Iterator[bytes]:
    header = head[: _header_length(head, header_lines, quoted=output_format.startswith("CSV"))]
    yield head
    for block in rest:
        document = cast(bytes, block.bytes())
        yield document.removeprefix(header) if header else document


def _header_length(document: bytes, lines: int, *, quoted: bool) -> int:
    """Bytes of the first lines; a line break inside quotes (CSV) belongs to its line."""
    at = 0
    for _ in range(lines):
        end = document.index(b"\n", at)
        while quoted and document.count(b'"', at, end) % 2:
            end = document.index(b"\n", end + 1)
        at = end + 1
    return at


class _Body(io.RawIOBase):
    """The request's body, by its length or chunked, as a file."""

    def __init__(self, source: io.BufferedIOBase, headers: Mapping[str, str]) -> None:
        self._source = source
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._left = 0 if self._chunked else int(headers.get("Content-Length") or 0)
        self.ended = not self._chunked and self._left == 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # the buffer protocol's type has no name before Python 3.12
        if self._chunked and self._left == 0 and not self.ended:
            self._left = int(self._source.readline(1024).split(b";")[0], 16)
            if self._left == 0:
                while self._source.readline(65_536).strip():  # trailers
                    pass
                self.ended = True
        if self.ended:
            return 0
        view = memoryview(buffer)[: self._left]
        count = self._source.readinto(view)
        if not count:
            raise ConnectionError("the client went away in the middle of the body")
        self._left -= count
        if self._left == 0:
            if self._chunked:
                self._source.readline(16)
            else:
                self.ended = True
        return int(count)


def _decoded(body: _Body, encoding: str) -> IO[bytes]:
    buffered = io.BufferedReader(body, 1 << 20)
    match encoding:
        case "" | "identity":
            return buffered
        case "gzip":
            return cast(IO[bytes], gzip.GzipFile(fileobj=buffered))
        case "zstd":
            reader = zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True)
            return cast(IO[bytes], io.BufferedReader(cast(Any, reader)))
        case "lz4":
            return cast(IO[bytes], lz4.frame.LZ4FrameFile(buffered))
        case _:
            raise RequestError(48, f"Content-Encoding {encoding} is not supported here", "NOT_IMPLEMENTED")


def _form_fields(content_type: str, body: bytes) -> dict[str, str]:
    """Fields of a form: clients send parameters so that would make the address too long."""
    if len(body) > _FORM_BYTES_MAX:
        raise RequestError(48, f"forms of more than {_FORM_BYTES_MAX} bytes are not supported here", "NOT_IMPLEMENTED")
    form = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    fields: dict[str, str] = {}
    for part in form.walk():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None:
            raise RequestError(48, "external data is not supported here", "NOT_IMPLEMENTED")
        if isinstance(name, str):
            fields[name] = cast(bytes, part.get_payload(decode=True)).decode()
    return fields


@contextlib.contextmanager
def _spool(data: IO[bytes]) -> Generator[Path]:
    """The whole data in a file of the engine's machine, in memory where there is room for it."""
    in_memory = _SPOOL_DIR.is_dir() and shutil.disk_usage(_SPOOL_DIR).free > 1 << 30
    with tempfile.NamedTemporaryFile(dir=_SPOOL_DIR if in_memory else None, prefix="usage-insert-") as file:
        shutil.copyfileobj(data, file, 1 << 20)
        file.flush()
        yield Path(file.name)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server_version = "ClickHouse"
    sys_version = ""
    timeout = _IDLE_SECONDS_MAX
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    engine: Engine  # set by serve()

    def do_GET(self) -> None:
        with cast(Server, self.server).request():
            self._handle(read_only=True)

    def do_POST(self) -> None:
        with cast(Server, self.server).request():
            self._handle(read_only=False)

    def do_HEAD(self) -> None:
        self._send(200, b"", {})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged, failures are (see _fail)."""

    def _handle(self, *, read_only: bool) -> None:
        self._started = False
        self._query_id = str(uuid.uuid4())
        url = urlsplit(self.path)
        try:
            if url.path == "/ping" or url.path == "/replicas_status":
                self._send(200, b"Ok.\n", {})
            elif url.path != "/":
                self._send(404, b"There is no handle " + url.path.encode() + b"\n", {})
            else:
                parameters = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
                self._query_id = parameters.get("query_id") or self._query_id
                self._query(parameters, read_only=read_only)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except (RequestError, ChdbError, RuntimeError) as error:
            self._fail(str(error))
        except (ValueError, EOFError, OSError, zstandard.ZstdError) as error:
            self._fail(
                f"Code: 27. DB::Exception: cannot read the request: {error} (CANNOT_PARSE_INPUT_ASSERTION_FAILED)"
            )
        except Exception as error:  # noqa: BLE001
            # The process answers whatever happens: it holds the engine for everyone.
            traceback.print_exc()
            self._fail(f"Code: 1002. DB::Exception: {type(error).__name__}: {error} (UNKNOWN_EXCEPTION)")

    def _query(self, parameters: dict[str, str], *, read_only: bool) -> None:
        body = _Body(self.rfile, cast(Mapping[str, str], self.headers))
        try:
            self._check_user(parameters)
            if parameters.get("decompress") == "1":
                raise RequestError(48, "decompress=1 is not supported here", "NOT_IMPLEMENTED")
            data = _decoded(body, self.headers.get("Content-Encoding", "").lower())
            content_type = self.headers.get("Content-Type", "")
            if content_type.lower().startswith("multipart/form-data"):
                parameters |= _form_fields(content_type, data.read(_FORM_BYTES_MAX + 1))
                data = io.BytesIO()
            text = parameters.get("query", "").encode()
            statement = parse(text)
            if statement.data_start is None:
                # Not an insert with data: the body, if there is one, is more of the text (or all of it).
                text = b"\n".join(part for part in (text, data.read()) if part)
                statement = parse(text)
                data = io.BytesIO(text[statement.data_start :] if statement.data_start is not None else b"")
            elif inline := text[statement.data_start :]:
                data = io.BytesIO(inline + b"\n" + data.read())
            self._run(statement, data, parameters, read_only=read_only)
        finally:
            if not body.ended:
                self._drain(body)

    def _drain(self, body: _Body) -> None:
        """Read what is left of the body: on a kept connection it would be taken for the next request."""
        try:
            while not body.closed and body.read(1 << 20):
                pass
            self.close_connection |= not body.ended
        except (ConnectionError, TimeoutError, ValueError, OSError):
            self.close_connection = True

    def _run(self, statement: Statement, data: IO[bytes], parameters: dict[str, str], *, read_only: bool) -> None:
        if not statement.verb:
            raise RequestError(62, "Syntax error: Empty query.", "SYNTAX_ERROR")
        if statement.several:
            raise RequestError(62, "Syntax error (Multi-statements are not allowed).", "SYNTAX_ERROR")
        if read_only and statement.verb not in _READING:
            raise RequestError(164, "default: Cannot execute query in readonly mode.", "READONLY")
        default = parameters.get("default_format") or self.headers.get("X-ClickHouse-Format") or "TabSeparated"
        database = self.headers.get("X-ClickHouse-Database")
        if database and "database" not in parameters:
            parameters["database"] = database
        with self.engine.connection(parameters) as connection:
            if statement.data_start is not None:
                with _spool(data) as spooled:
                    outcome = _insert(connection, statement, spooled)
                self._answer(outcome, None, whole=True)
                return
            output_format = statement.format or default
            whole = parameters.get("wait_end_of_query") == "1" or self.request_version == "HTTP/1.0"
            outcome = _select(
                connection,
                statement.head.decode(),
                output_format,
                whole=whole,
                streamable=statement.verb in ("SELECT", "WITH"),
            )
            try:
                self._answer(outcome, output_format, whole=whole)
            finally:
                if outcome.stream is not None:
                    outcome.stream.cancel()

    def _check_user(self, parameters: Mapping[str, str]) -> None:
        user = parameters.get("user") or self.headers.get("X-ClickHouse-User")
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "basic":
            user = base64.b64decode(credentials).decode().partition(":")[0]
        if user not in (None, "", "default"):
            raise RequestError(516, f"{user}: there is only the user default here", "AUTHENTICATION_FAILED")

    def _answer(self, outcome: _Outcome, output_format: str | None, *, whole: bool) -> None:
        headers = {"X-ClickHouse-Summary": _summary(outcome), "X-ClickHouse-Timezone": self.engine.timezone}
        if output_format is not None:
            headers["X-ClickHouse-Format"] = output_format
            headers["Content-Type"] = _CONTENT_TYPES.get(output_format, "text/plain; charset=UTF-8")
        first = next(outcome.chunks, b"")
        second = next(outcome.chunks, None)
        if second is None:
            self._send(200, first, headers)
            return
        if whole:
            self._send(200, b"".join((first, second, *outcome.chunks)), headers)
            return
        self._headers(200, {**headers, "Transfer-Encoding": "chunked"})
        for chunk in (first, second):
            self._chunk(chunk)
        for chunk in outcome.chunks:
            self._chunk(chunk)
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n" % len(data))
            self.wfile.write(data)
            self.wfile.write(b"\r\n")

    def _fail(self, message: str) -> None:
        message = message[message.find("Code: ") :] if "Code: " in message else message
        found = _CODE.search(message)
        code = int(found.group(1)) if found else 1002
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} query {self._query_id}: {message}", file=sys.stderr, flush=True)
        text = f"{message} (version {self.engine.version})\n".encode()
        try:
            if self._started:
                # Too late for a status: the chunked answer is left without its end, so no client takes it for whole.
                self._chunk(b"\n" + text)
                self.wfile.flush()
                self.close_connection = True
                return
            headers = {"X-ClickHouse-Exception-Code": str(code), "Content-Type": "text/plain; charset=UTF-8"}
            self._send(_STATUS_OF_CODE.get(code, 500), text, headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _headers(self, status: int, headers: Mapping[str, str]) -> None:
        self._started = True
        self.send_response(status)
        self.send_header("X-ClickHouse-Query-Id", getattr(self, "_query_id", ""))
        self.send_header("X-ClickHouse-Server-Display-Name", _SERVER_NAME)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._headers(
            status, {"Content-Type": "text/plain; charset=UTF-8", **headers, "Content-Length": str(len(body))}
        )
        self.wfile.write(body)
        self.wfile.flush()


def _summary(outcome: _Outcome) -> str:
    counts = {
        "read_rows": outcome.rows_read,
        "read_bytes": outcome.bytes_read,
        "written_rows": outcome.rows_written,
        "written_bytes": outcome.bytes_written,
    }
    return json.dumps({name: str(value) for name, value in counts.items()})


class Server(ThreadingHTTPServer):
    """A thread a connection: the engine's calls block, and give Python's lock free while they run."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, port: int, engine: Engine) -> None:
        self._running = 0
        self._idle = threading.Condition()
        super().__init__((HOST, port), type("EngineHandler", (Handler,), {"engine": engine}))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours; anything else is printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def request(self) -> Generator[None]:
        """Count a request as running."""
        with self._idle:
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until no request runs; False when the time is over first."""
        with self._idle:
            return self._idle.wait_for(lambda: self._running == 0, timeout_seconds)


def serve(path: Path, port: int) -> None:
    """Answer until SIGTERM or SIGINT, then let running requests end (a bounded time) and close the engine."""
    path.mkdir(parents=True, exist_ok=True)
    engine = Engine(path)
    server = Server(port, engine)
    stopping = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if not stopping.is_set():
            stopping.set()
            threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"ClickHouse {engine.version} (chDB) answers on http://{HOST}:{port}/, data in {path}", flush=True)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    if not server.drain(_DRAIN_SECONDS_MAX):
        print(f"requests still run after {_DRAIN_SECONDS_MAX:g} s, ending all the same", file=sys.stderr, flush=True)
        os._exit(1)  # Closing the engine would wait for them.
    engine.close()
