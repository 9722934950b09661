"""ClickHouse → messages of usage.events that were set aside, and which of them were stored after all."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from warehouse.client import ClickHouseError, Client, unavailable
from warehouse.shards import Store, at_once, shards_of

_BATCHES_AT_ONCE = 1_000  # a server takes 128 KiB in one parameter


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """found_at: µs since 1970. key, payload: the message's bytes, of a very long one only its beginning."""

    epoch: int
    partition: int
    offset: int
    reason: str
    detail: str
    found_at: int
    key: bytes
    payload: bytes

    @property
    def place(self) -> str:
        return f"{self.epoch}/{self.partition}/{self.offset}"


def stored_letters(store: Store, reason: str | None = None) -> list[StoredLetter]:
    """In the order of the log. Raises WarehouseUnavailable."""
    query = """
        SELECT
            kafka_epoch, kafka_partition, kafka_offset, reason, detail, toUnixTimestamp64Micro(found_at),
            key, payload
        FROM stored_dead_letters FINAL
        WHERE CONDITION
        ORDER BY kafka_epoch, kafka_partition, kafka_offset
    """
    condition, parameters = ("1", {}) if reason is None else ("reason = {reason:String}", {"reason": reason})
    try:
        rows = shards_of(store).first.query(query.replace("CONDITION", condition), parameters).result_rows
    except ClickHouseError as error:
        raise unavailable(error) from error
    return [
        StoredLetter(
            epoch=int(epoch),
            partition=int(partition),
            offset=int(offset),
            reason=reason_of,
            detail=detail,
            found_at=int(found_at),
            key=base64.b64decode(key),
            payload=base64.b64decode(payload),
        )
        for epoch, partition, offset, reason_of, detail, found_at, key, payload in rows
    ]


def stored_batches(store: Store, batch_ids: Iterable[bytes]) -> set[bytes]:
    """Which of these batches have a message whose events or tombstones are stored. Raises WarehouseUnavailable."""
    wanted = sorted({batch_id.hex() for batch_id in batch_ids})
    found: set[bytes] = set()
    query = """
        SELECT DISTINCT lower(hex(batch_id)) FROM ingest_batches
        WHERE (events > 0 OR reason = 'void') AND lower(hex(batch_id)) IN {wanted:Array(String)} AND OWN
    """
    try:
        for first in range(0, len(wanted), _BATCHES_AT_ONCE):
            some = wanted[first : first + _BATCHES_AT_ONCE]

            def asked(client: Client, own: str, some: list[str] = some) -> Sequence[Sequence[str]]:
                return client.query(query.replace("OWN", own), {"wanted": some}).result_rows

            for rows in at_once(shards_of(store).everywhere(), asked):
                found.update(bytes.fromhex(row[0]) for row in rows)
    except ClickHouseError as error:
        raise unavailable(error) from error
    return found
