"""A server's version → whether bills may rest on it. Pure."""

from __future__ import annotations

import re

SERVER_VERSION_MIN = (24, 8)
"""The oldest version that `make test-clickhouse` runs."""

# The first patch that counts right: before it compiled max and min compare negative decimals as unsigned numbers
# (ClickHouse 100740). Our own queries are not compiled, but an analyst's are, and read the same views.
_FIRST_RIGHT_PATCH: dict[tuple[int, ...], int] = {(26, 1): 8, (26, 2): 7, (26, 3): 4}


def refusal(version: str) -> str | None:
    """Why not, in one line; None: they may. version: as `SELECT version()` answers."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    release, patch = numbers[:2], numbers[2] if len(numbers) > 2 else 0
    if release < SERVER_VERSION_MIN:
        return f"ClickHouse {version} is too old: {_text(SERVER_VERSION_MIN)} or later is needed"
    right = _FIRST_RIGHT_PATCH.get(release)
    if right is not None and patch < right:
        return (
            f"ClickHouse {version} answers max and min of negative decimals wrongly (ClickHouse issue 100740):"
            f" {_text((*release, right))} or later is needed"
        )
    return None


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
