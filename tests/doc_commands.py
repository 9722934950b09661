"""A Markdown page → the commands that it shows, and a shell that types them on a local stack of its own.

A fenced block marked `sh` is run exactly as printed, but for the port and the directory of the local stack. A block below a
comment `<!-- not run: REASON -->` is not run.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.local.process import HOST, free_ports

ROOT = Path(__file__).parents[1]
PORTS = {
    "USAGE_HTTP_PORT": 8080,
    "USAGE_LOCAL_KAFKA_PORT": 9092,
    "USAGE_LOCAL_KAFKA_CONTROLLER_PORT": 9093,
    "USAGE_LOCAL_CLICKHOUSE_PORT": 8123,
    "USAGE_LOCAL_CLICKHOUSE_NATIVE_PORT": 9000,
    "USAGE_LOCAL_STRIPE_PORT": 12111,
    "USAGE_AGGREGATOR_METRICS_PORT": 8081,
    "USAGE_SINK_METRICS_PORT": 8082,
    "USAGE_BILLING_METRICS_PORT": 8083,
}
_FENCE = re.compile(r"(?P<skip><!-- not run: [^\n]+ -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block. language: as written after the fence. is_run: False below a comment `not run`."""

    language: str
    text: str
    is_run: bool


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = _FENCE.finditer(page.read_text())
    return [Block(match["language"].strip(), match["text"], match["skip"] is None) for match in found]


def script(page: Path) -> str:
    """The commands of a page as one script."""
    return "".join(block.text for block in blocks(page) if block.language == "sh" and block.is_run)


class Shell:
    """A local stack's directory and ports, and a shell in the project's root."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        jars = Path(os.environ.get("USAGE_LOCAL_DIR", ".local")).absolute() / "jars"
        if jars.is_dir():  # downloaded once for all tests
            (directory / "jars").symlink_to(jars)
        self._directory = directory
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("USAGE_", "STRIPE_"))}
        self._env = inherited | {"USAGE_LOCAL_DIR": str(directory), "NO_COLOR": "1", "COLUMNS": "200"}
        self._env |= {name: str(port) for name, port in self._ports.items()}

    def type(self, commands: str, seconds_max: float = 300) -> str:
        """Standard output of the commands, which all succeed. The names of files and ports are those of this stack."""
        for name, default in PORTS.items():
            commands = re.sub(rf"\b(127\.0\.0\.1|localhost):{default}\b", f"{HOST}:{self._ports[name]}", commands)
        commands = commands.replace(".local/", f"{self._directory}/")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=ROOT,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout
