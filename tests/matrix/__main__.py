"""Every ClickHouse version that is claimed: `python -m tests.matrix [VERSION …]`, a line for each; 1 if one fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy.local.process import free_ports
from schemas.settings import Settings
from tests.matrix.engine import engine_of
from tests.matrix.versions import VERSIONS, Version, version_named
from warehouse.client import UnsupportedServer
from warehouse.migrate import migrate

TESTS = (
    "tests/contract/test_warehouse.py",
    "tests/contract/test_inserts.py",
    "tests/contract/test_audit.py",
    "tests/contract/test_analysts_sql.py",
)
# One request at a time: nothing can pause for another.
NOT_EMBEDDED = ("tests/contract/test_warehouse.py::test_what_reads_much_pauses_while_a_page_waits",)
_CLOSING = re.compile(r"=* ?(\d+ (?:passed|failed|error).*) in [\d.]+s")


def install(version: Version, uv: str) -> None:
    """The version's environment, unless it is there; only the wheel, whose hash is known."""
    marker = version.environment / "installed"
    wanted = version.requirements.read_text()
    if marker.exists() and marker.read_text() == wanted:
        return
    python = str(version.environment / "bin" / "python")
    subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(version.environment)], check=True)
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, "--no-deps", "--require-hashes", "-r", version.requirements],
        check=True,
    )
    marker.write_text(wanted)


def refusal(version: Version) -> str | None:
    """What `migrate` says to it; None: nothing."""
    with tempfile.TemporaryDirectory() as directory:
        engine = engine_of(version, Path(directory) / "data", free_ports(1)[0], Path(directory) / "log")
        engine.start()
        try:
            migrate(Settings(clickhouse_dsn=engine.dsn("usage")))
        except UnsupportedServer as error:
            return str(error)
        finally:
            engine.stop()
    return None


def run(version: Version) -> bool:
    """Whether it counts right, or is refused where it does not; prints one line, and pytest's of what fails."""
    form = "its own server" if version.listens else "embedded"
    if version.refused:
        reason = refusal(version)
        print(f"{version.name}  {form}: {'refused: ' + reason if reason else 'NOT refused'}", flush=True)
        return reason is not None
    deselected = () if version.listens else [f"--deselect={test}" for test in NOT_EMBEDDED]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--timeout", "600", *deselected, *TESTS],
        env={**os.environ, "USAGE_TEST_CLICKHOUSE": version.name},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    closing = _CLOSING.findall(done.stdout)
    print(f"{version.name}  {form}: {closing[-1] if closing else f'exit code {done.returncode}'}", flush=True)
    return done.returncode == 0


def main() -> int:
    versions = [version_named(name) for name in sys.argv[1:]] or VERSIONS
    uv = os.environ.get("UV", "uv")
    for version in versions:
        install(version, uv)
    failed = [version.name for version in versions if not run(version)]
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
