"""Several questions to ClickHouse → whether one store answered them all, and not in between an older copy of it.

Who restores a copy takes rows away that an earlier answer had counted. A row with a name of its own, left before the
first question, is then gone too.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager

from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, unavailable

MARK_IS_THERE = "(SELECT count() FROM store_marks WHERE mark = {mark:UUID}) > 0"


class StoreReplaced(WarehouseUnavailable):
    """An older copy has taken the store's place: what was counted meanwhile may lack events."""

    def __init__(self) -> None:
        super().__init__("ClickHouse was replaced by an older copy of itself meanwhile")


@contextmanager
def one_store(client: Client) -> Generator[uuid.UUID]:
    """What is read within is of one store: the one with this mark. Raises StoreReplaced at its end, where it was not,
    WarehouseUnavailable.
    """
    try:
        mark = leave_mark(client)
    except ClickHouseError as error:
        raise unavailable(error) from error
    yield mark
    try:
        same = is_marked(client, mark)
    except ClickHouseError as error:
        raise unavailable(error) from error
    if not same:
        raise StoreReplaced


def leave_mark(client: Client) -> uuid.UUID:
    """Raises ClickHouseError."""
    mark = uuid.uuid4()
    client.insert("store_marks", [[mark]], column_names=["mark"])
    return mark


def is_marked(client: Client, mark: uuid.UUID) -> bool:
    """Whether it is the store in which the mark was left, a day ago at most. Raises ClickHouseError."""
    return bool(client.query(f"SELECT {MARK_IS_THERE}", parameters={"mark": mark}).result_rows[0][0])
