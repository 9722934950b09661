"""A directory and a port → ClickHouse's engine (chDB) behind ClickHouse's HTTP interface, as a process.

The server itself is clickhouse_server.py: whoever only starts and stops it need not load the engine.
"""

import argparse
import http.client
import sys
from pathlib import Path

from deploy.local.process import HOST, ManagedProcess, StartFailed, answers


class ClickHouseLocal(ManagedProcess):
    """The engine's process: start, stop, kill, start again on the same data."""

    def __init__(self, data_dir: Path, port: int, log_path: Path) -> None:
        super().__init__("clickhouse", log_path)
        self.data_dir = data_dir.absolute()
        self.port = port
        self.url = f"http://{HOST}:{port}"

    def dsn(self, database: str = "default") -> str:
        """Address for clickhouse-connect."""
        return f"http://default@{HOST}:{self.port}/{database}"

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "deploy.local.clickhouse_http"]
        return [*command, "--port", str(self.port), "--path", str(self.data_dir)]

    def ready(self) -> bool:
        """Whether it answers a query."""
        if not answers(self.port):
            return False
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/?query=SELECT+1")
            return connection.getresponse().read() == b"1\n"
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def start(self, timeout_seconds: float = 60.0) -> None:
        """Start and return when it answers; raises StartFailed with the tail of the log."""
        if answers(self.port):
            raise StartFailed(f"port {self.port} is taken: another process answers there")
        self.spawn(self.command())
        self.wait_until(self.ready, timeout_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.clickhouse_http",
        description="ClickHouse's HTTP interface over chDB, on 127.0.0.1.",
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", type=Path, required=True, help="directory of the engine's data")
    arguments = parser.parse_args()
    from deploy.local.clickhouse_server import serve

    serve(arguments.path, arguments.port)


if __name__ == "__main__":
    main()
