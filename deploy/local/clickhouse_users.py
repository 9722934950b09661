"""analysts ↔ files in the local ClickHouse's users.d, which its engine reads at each start."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from deploy.local.process import HOST
from warehouse.analysts import Analyst, analyst_of, users_xml

USERS_DIRECTORY = "users.d"


class AnalystExists(Exception):
    """There is one of this name."""


def write_analyst(
    directory: Path, analyst: Analyst, database: str, password_sha256: str, *, replace: bool = False
) -> None:
    """Have the engine's next start know the analyst. directory: the engine's. Raises AnalystExists."""
    path = _path(directory, analyst.name)
    if path.exists() and not replace:
        raise AnalystExists(f"there is an analyst {analyst.name}")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = path.with_suffix(f".{secrets.token_hex(4)}")  # the engine reads names that end with .xml
    with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(users_xml(analyst, database, password_sha256, [HOST]))
    aside.replace(path)


def remove_analyst(directory: Path, name: str) -> bool:
    """Whether there was one."""
    path = _path(directory, name)
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed


def analysts(directory: Path) -> list[Analyst]:
    """In alphabetical order. Raises ValueError for a file that is not ours."""
    found = sorted((directory / USERS_DIRECTORY).glob("*.xml"))
    return [analyst_of(path.read_text()) for path in found]


def _path(directory: Path, name: str) -> Path:
    return directory / USERS_DIRECTORY / f"{name}.xml"
