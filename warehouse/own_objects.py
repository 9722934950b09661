"""an error of an insert → whose view, table or constraint it names: ours, or somebody else's. Pure.

Analysts may hang views on our tables. One of theirs that fails fails the insert, with the codes that damaged bytes
have; ClickHouse names every view on the way, and the table of a constraint.
"""

from __future__ import annotations

import re
from functools import lru_cache

from warehouse.migrate import migrations

_NAME = r"(?:`[^`]+`|[\w$-]+)"
_PUSHED = re.compile(rf"pushing to view ({_NAME}(?:\.{_NAME})?)")
_VIOLATED = re.compile(rf"Constraint (`[^`]+`|\w+) for table ({_NAME}(?:\.{_NAME})?)")
_MADE = re.compile(r"CREATE (?:OR REPLACE )?(?:TABLE|VIEW|MATERIALIZED VIEW) (?:IF NOT EXISTS )?(\w+)")
_CONSTRAINED = re.compile(r"CONSTRAINT (?:IF NOT EXISTS )?(\w+) CHECK")


def pushed_views(text: str) -> list[str]:
    """Views that an error came through, the innermost first, as they are named."""
    return _PUSHED.findall(text)


def foreign_object(error: Exception) -> str | None:
    """The view or constraint of somebody else that failed; None: the error names none."""
    text = str(error)
    for name in pushed_views(text):
        if _bare(name) not in _ours():
            return f"view {name}"
    if (violated := _VIOLATED.search(text)) is not None:
        constraint, table = violated.groups()
        if _bare(table) not in _ours() or _bare(constraint) not in _our_constraints():
            return f"constraint {constraint} of table {table}"
    return None


def is_ours(name: str) -> bool:
    """Whether a migration made the table or view of this name, in our database."""
    return name in _ours()


def _bare(name: str) -> str:
    """Without the database and quotes."""
    return name.rpartition(".")[2].strip("`")


@lru_cache(maxsize=1)
def _ours() -> frozenset[str]:
    return frozenset(name for migration in migrations() for name in _MADE.findall(migration.text))


@lru_cache(maxsize=1)
def _our_constraints() -> frozenset[str]:
    return frozenset(name for migration in migrations() for name in _CONSTRAINED.findall(migration.text))
