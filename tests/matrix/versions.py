"""Which ClickHouse versions the SQL is run on, and by which wheel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(".cache") / "clickhouse"


@dataclass(frozen=True, slots=True)
class Version:
    """name: release. wheel: distribution and version. listens: it opens ports itself; else it is embedded.

    refused: it counts wrongly, so nothing but the refusal is tested.
    """

    name: str
    wheel: str
    listens: bool = False
    refused: bool = False

    @property
    def environment(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def requirements(self) -> Path:
        """The wheel with its hashes."""
        return Path(__file__).parent / "wheels" / f"{self.name}.txt"


VERSIONS = (
    Version("24.8", "chdb==3.3.0"),
    Version("25.8", "chdb==3.7.2"),
    Version("26.1", "chdb-core==26.1.0", refused=True),
    Version("26.3", "chdb-core==26.3.0"),
    Version("26.5", "chdb-core==26.5.0"),
    Version("26.7", "chdb-core==26.7.3", listens=True),
    Version("26.9", "chdb-core==26.9.0", listens=True),
)


def version_named(name: str) -> Version:
    """Raises StopIteration."""
    return next(version for version in VERSIONS if version.name == name)
