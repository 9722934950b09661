"""An older engine, embedded in this process → enough of ClickHouse's HTTP interface for clickhouse-connect.

Versions before 26.6 open no port of their own. Runs by the Python of the engine's environment, so it imports nothing but
the standard library and chdb; `libraries` is where pyarrow lies, which chdb imports and does not need. One request at a
time; for tests of SQL, not for load.
"""

from __future__ import annotations

import argparse
import email
import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_CODE = re.compile(r"Code: (\d+)")
# Data begins after one line break: a byte of it may look like another.
_INSERT = re.compile(rb"\s*INSERT\s[^\n]*?\sFORMAT\s+(\w+)[ \t]*\n", re.IGNORECASE)
# Parameters of the request itself; every other one is a setting or a parameter of the query.
_RESERVED = {
    "query", "database", "default_format", "query_id", "session_id", "session_timeout", "wait_end_of_query", "compress",
    "decompress", "client_protocol_version", "user", "password", "enable_http_compression", "send_progress_in_http_headers",
    "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close",
}  # fmt: skip


class Engine:
    """The one connection, and what a request changes of it and puts back."""

    def __init__(self, path: str) -> None:
        from chdb.state.sqlitelike import Connection

        self._connection: Any = Connection(path)
        self._lock = threading.Lock()
        version = self._query("SELECT version()").decode()
        # 26.5 and older never come back from it.
        self._waits_for_drops = tuple(map(int, version.split(".")[:2])) > (26, 5)

    def answer(self, parameters: dict[str, str], body: bytes) -> bytes:
        """Raises RuntimeError with the engine's message."""
        head, data = self._parts(parameters.get("query", ""), body)
        settings = [name for name in parameters if name not in _RESERVED and not name.startswith("param_")]
        with self._lock:
            self._query(f"USE {_quoted(parameters.get('database', 'default'), '`')}")
            for name in parameters.keys() - _RESERVED:
                self._query(f"SET {name} = {_quoted(parameters[name])}")
            try:
                return self._query(head) if data is None else self._insert(head, data)
            finally:
                for name in settings:
                    self._query(f"SET {name} = DEFAULT")

    @staticmethod
    def _parts(query: str, body: bytes) -> tuple[str, bytes | None]:
        """The statement, and the data of an insert that has some."""
        text = query.encode() + b"\n" + body if query else body
        insert = _INSERT.match(text)
        if insert is None or insert[1].upper() == b"VALUES":
            return text.decode(), None
        return insert[0].decode(), text[insert.end() :]

    def _insert(self, head: str, data: bytes) -> bytes:
        before, _, format_name = head.strip().rpartition("FORMAT")
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            return self._query(f"{before} FROM INFILE {_quoted(file.name)} FORMAT {format_name}")

    def _query(self, sql: str) -> bytes:
        if sql.startswith("DROP DATABASE") and not self._waits_for_drops:
            sql = sql.replace(" SYNC", "")
        return self._connection.query(sql, "TabSeparated").bytes() or b""


def _quoted(value: str, mark: str = "'") -> str:
    return mark + value.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/ping":
            self._send(200, b"Ok.\n")
        else:
            self.do_POST()

    def do_POST(self) -> None:
        parameters = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        body = self._body()
        content_type = self.headers.get("Content-Type", "")
        if content_type.startswith("multipart/form-data"):  # parameters that are too long for an address
            form = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
            for part in form.walk():
                name = part.get_param("name", header="Content-Disposition")
                payload = part.get_payload(decode=True)
                if isinstance(name, str) and isinstance(payload, bytes):
                    parameters[name] = payload.decode()
            body = b""
        try:
            self._send(200, self.engine.answer(parameters, body))
        except Exception as error:  # noqa: BLE001 (each version has error types of its own)
            # An older one fails to decode a message that quotes what it could not read.
            text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
            code = _CODE.search(text)
            self._send(500, text.encode(), {"X-ClickHouse-Exception-Code": code[1]} if code else {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("X-ClickHouse-Summary", "{}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test that fails says more."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--libraries", required=True)
    arguments = parser.parse_args()
    sys.path.append(arguments.libraries)
    _Handler.engine = Engine(arguments.path)
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), _Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
