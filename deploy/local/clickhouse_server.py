"""chDB's library → a process that listens as ClickHouse does, over HTTP and, if asked, over the native protocol.

The handlers are the engine's own. `_chdb.query` is clickhouse-local's main: it reads config.xml in the working
directory, and `SYSTEM START LISTEN` (since 26.6) opens the ports. It is called once in a process and blocks until its
last statement ends, which reads standard input: that is a pipe, and closing it ends the process in order.

The function file(path) asks for no right in this engine, and would give any file to anyone who may send a query. It
begins by asking for the working directory, and fails where that is gone: so the process has none when the ports open.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from xml.sax.saxutils import escape

from deploy.local.clickhouse_http import service_password
from deploy.local.clickhouse_users import USERS_DIRECTORY
from deploy.local.process import HOST

_TEMPLATES = Path(__file__).with_name("clickhouse_config")
# Each waits for the end of what it reads; costs nothing meanwhile.
_OPENING = "opening"
_UNTIL_OPENING = f"SELECT * FROM file('{_OPENING}', LineAsString, 'line String') FORMAT Null"
_HOLD = "SELECT * FROM file('-', LineAsString, 'line String') FORMAT Null"
_DRAIN_SECONDS_MAX = 2.0  # for requests under way; a client that keeps its connection uses it up
_FILES_OF_OURS = ("password", "users.xml", USERS_DIRECTORY, "config.xml", "server.log")
_MOVING = "data.moving"
_LOOK_SECONDS = 0.002


def take_over(directory: Path) -> None:
    """Move an embedded engine's files from the directory to directory/data. After a kill the next call continues.

    The embedded engine has a folder `data` of its own, so everything is gathered under another name first.
    """
    moving = directory / _MOVING
    if not (directory / "metadata").is_dir() and not moving.is_dir():
        return
    moving.mkdir(exist_ok=True)
    for entry in sorted(directory.iterdir()):
        if entry.name != _MOVING and not entry.name.startswith(_FILES_OF_OURS):
            entry.rename(moving / entry.name)
    moving.rename(directory / "data")


def write_config(directory: Path, port: int, native_port: int | None) -> None:
    """config.xml and users.xml of an engine whose files all lie in the directory, for its owner's eyes only."""
    values = {
        "host": HOST,
        "port": port,
        "native": f"<tcp_port>{native_port}</tcp_port>" if native_port else "",
        "data": escape(str(directory / "data")),
        "users": escape(str(directory / "users.xml")),
        "log": escape(str(directory / "server.log")),
        "password_sha256": hashlib.sha256(service_password(directory).encode()).hexdigest(),
    }
    for name in ("users.xml", "config.xml"):
        (directory / name).write_text((_TEMPLATES / name).read_text().format_map(values))


def load_engine() -> ModuleType:
    """chDB's extension without the package around it, which would start another engine first."""
    package = importlib.util.find_spec("chdb")
    if package is None or package.origin is None:
        raise SystemExit("chdb-core is not installed: pip install 'usage-billing[local]'")
    spec = importlib.util.spec_from_file_location("_chdb", Path(package.origin).with_name("_chdb.abi3.so"))
    assert spec is not None
    assert spec.loader is not None
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    return engine


def check_ports(ports: Iterable[int]) -> None:
    """End where one is taken. The engine would say so too, but it aborts on its way out without a directory."""
    for port in ports:
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the engine's own: a former one's are free
            try:
                taken.bind((HOST, port))
            except OSError as error:
                raise SystemExit(f"{HOST}:{port}: {error.strerror}") from error


def open_for_reader(fifo: Path, reader: threading.Thread) -> int | None:
    """The end to write to, once the other one is read; None: its reader ended before."""
    while reader.is_alive():
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise
        reader.join(_LOOK_SECONDS)
    return None


def leave_directory(directory: Path) -> None:
    """Have this process be in a directory that is not there any more."""
    gone = tempfile.mkdtemp(dir=directory)
    os.chdir(gone)
    Path(gone).rmdir()


def serve(directory: Path, ports: list[str]) -> int:
    """Listen until SIGTERM or SIGINT; the exit code. ports: HTTP, TCP."""
    # Blocked here and so in every thread of the engine: only the wait below takes them, whatever handlers it installs.
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending | {signal.SIGUSR1})
    os.chdir(directory)
    reads, writes = os.pipe()
    os.dup2(reads, 0)
    os.close(reads)
    engine = load_engine()
    statements = "; ".join([_UNTIL_OPENING, *(f"SYSTEM START LISTEN {port}" for port in ports), _HOLD])
    opening = directory / _OPENING
    opening.unlink(missing_ok=True)
    os.mkfifo(opening)

    def run() -> None:
        try:
            # The format is also that of a request over HTTP which names none. Errors are printed, not raised.
            engine.query(statements, "TabSeparated")
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=run, name="engine", daemon=True)
    thread.start()
    if writes_to_engine := open_for_reader(opening, thread):
        opening.unlink()  # who copies the directory needs no pipe
        leave_directory(directory)
        os.close(writes_to_engine)
    asked = signal.sigwait(ending | {signal.SIGUSR1}) in ending
    if asked:
        os.close(writes)
    thread.join(_DRAIN_SECONDS_MAX)
    return 0 if asked else 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.clickhouse_server",
        description=f"ClickHouse's HTTP and native interfaces on {HOST}, out of chDB's library.",
    )
    parser.add_argument("--path", type=Path, required=True, help="directory of its data, configuration and password")
    parser.add_argument("--port", type=int, required=True, help="HTTP")
    parser.add_argument("--native-port", type=int, help="clickhouse-client's")
    arguments = parser.parse_args()
    directory: Path = arguments.path.absolute()
    os.umask(0o077)
    directory.mkdir(parents=True, exist_ok=True)
    take_over(directory)
    write_config(directory, arguments.port, arguments.native_port)
    check_ports(port for port in (arguments.port, arguments.native_port) if port)
    code = serve(directory, ["HTTP", "TCP"] if arguments.native_port else ["HTTP"])
    os._exit(code)  # whatever the engine still waits for: what it has acknowledged is on the disk


if __name__ == "__main__":
    main()
