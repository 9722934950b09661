"""Several questions to ClickHouse → whether one store answered them all, and not in between an older copy of it.

Who restores a copy takes rows away that an earlier answer had counted. A row with a name of its own, left before the
first question, is then gone too.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager

from warehouse.client import ClickHouseError, Client, WarehouseUnavailable, unavailable
from warehouse.shards import Store, at_once, shards_of

MARK_IS_THERE = "(SELECT count() FROM store_marks WHERE mark = {mark:UUID}) > 0"


class StoreReplaced(WarehouseUnavailable):
    """An older copy has taken the store's place: what was counted meanwhile may lack events."""

    def __init__(self) -> None:
        super().__init__("ClickHouse was replaced by an older copy of itself meanwhile")


@contextmanager
def one_store(store: Store) -> Generator[uuid.UUID]:
    """What is read within is of one store: the one with this mark. Raises StoreReplaced at its end, where it was not,
    WarehouseUnavailable.

    Of shards each has the mark, and none may be replaced.
    """
    try:
        mark = leave_mark(store)
    except ClickHouseError as error:
        raise unavailable(error) from error
    yield mark
    try:
        same = is_marked(store, mark)
    except ClickHouseError as error:
        raise unavailable(error) from error
    if not same:
        raise StoreReplaced


def leave_mark(store: Store) -> uuid.UUID:
    """Raises ClickHouseError, of shards WarehouseUnavailable too."""
    mark = uuid.uuid4()

    def leave(client: Client, _: str) -> None:
        client.insert("store_marks", [[mark]], column_names=["mark"])

    at_once(shards_of(store).everywhere(), leave)
    return mark


def is_marked(store: Store, mark: uuid.UUID) -> bool:
    """Whether it is the store in which the mark was left, a day ago at most. Raises as leave_mark."""

    def asked(client: Client, _: str) -> bool:
        return bool(client.query(f"SELECT {MARK_IS_THERE}", parameters={"mark": mark}).result_rows[0][0])

    return all(at_once(shards_of(store).everywhere(), asked))
