"""A wheel of another ClickHouse version, in an environment of its own → an engine as tests have it."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.process import HOST
from tests.matrix.versions import Version


class EmbeddedClickHouse(ClickHouseLocal):
    """An engine that opens no port of its own: see embedded.py."""

    def __init__(self, environment: Path, data_dir: Path, port: int, log_path: Path) -> None:
        super().__init__(data_dir, port, log_path)
        self._environment = environment

    def dsn(self, database: str = "default") -> str:
        return f"http://default@{HOST}:{self.port}/{database}"

    def command(self) -> list[str]:
        command = [str(self._environment / "bin" / "python"), str(Path(__file__).with_name("embedded.py"))]
        command += ["--path", str(self.data_dir), "--port", str(self.port)]
        return [*command, "--libraries", sysconfig.get_path("platlib")]


class ListeningClickHouse(ClickHouseLocal):
    """An engine that listens, by the project's own server."""

    def __init__(self, environment: Path, data_dir: Path, port: int, log_path: Path) -> None:
        super().__init__(data_dir, port, log_path)
        (self._packages,) = environment.glob("lib/python*/site-packages")

    def spawn(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        super().spawn(command, {**(env or os.environ), "PYTHONPATH": str(self._packages)}, cwd)


def engine_of(version: Version, data_dir: Path, port: int, log_path: Path) -> ClickHouseLocal:
    """Not started; the version's environment is there."""
    kind = ListeningClickHouse if version.listens else EmbeddedClickHouse
    return kind(version.environment.absolute(), data_dir, port, log_path)
