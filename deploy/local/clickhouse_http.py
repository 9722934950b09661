"""A directory and ports → ClickHouse's own server, out of chDB's library, as a process.

The server itself is clickhouse_server.py: a process that only starts and stops it need not load the engine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import urllib.request
from pathlib import Path

from deploy.local.process import HOST, ManagedProcess, StartFailed, answers
from schemas.settings import CLICKHOUSE_PASSWORD_FILE, CLICKHOUSE_USER


def service_password(directory: Path) -> str:
    """The password of the services' user, made at the first call and readable by its owner alone."""
    file = directory / CLICKHOUSE_PASSWORD_FILE
    if not file.exists():
        aside = directory / f"{CLICKHOUSE_PASSWORD_FILE}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
            out.write(secrets.token_urlsafe(24))
        with contextlib.suppress(FileExistsError):  # another process was first
            file.hardlink_to(aside)
        aside.unlink()
    return file.read_text().strip()


class ClickHouseLocal(ManagedProcess):
    """The engine's process: start, stop, kill, start again on the same data."""

    def __init__(self, data_dir: Path, port: int, log_path: Path, native_port: int | None = None) -> None:
        super().__init__("clickhouse", log_path)
        self.data_dir = data_dir.absolute()
        self.port = port
        self.native_port = native_port
        self.url = f"http://{HOST}:{port}"

    @property
    def password(self) -> str:
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return service_password(self.data_dir)

    def dsn(self, database: str = "default") -> str:
        """Address for clickhouse-connect."""
        return f"http://{CLICKHOUSE_USER}:{self.password}@{HOST}:{self.port}/{database}"

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "deploy.local.clickhouse_server"]
        command += ["--path", str(self.data_dir), "--port", str(self.port)]
        return command + (["--native-port", str(self.native_port)] if self.native_port else [])

    def ready(self) -> bool:
        """Whether it listens: it opens its ports when all tables are loaded."""
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as answer:
                return answer.read() == b"Ok.\n"
        except (OSError, ValueError):
            return False

    def start(self, timeout_seconds: float = 60.0) -> None:
        """Start and return when it answers; raises StartFailed with the tail of the log."""
        if answers(self.port):
            raise StartFailed(f"port {self.port} is taken: another process answers there")
        self.spawn(self.command())
        self.wait_until(self.ready, timeout_seconds)
