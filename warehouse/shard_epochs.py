"""Epochs of usage.events, the same on every shard.

They are claimed on the first shard, and each claim is copied as it was made. Whoever reads a shard needs no other.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from warehouse.client import ClickHouseError, WarehouseUnavailable, unavailable
from warehouse.epochs import Claim, claims, register_epoch, settle
from warehouse.shards import Shards

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def register_everywhere(shards: Shards, topic_id: str) -> int:
    """`register_epoch` where every shard is to have the number. Raises EpochsExhausted, WarehouseUnavailable.

    All of them must answer: a number that one of them alone remembers, since another is an older copy, is not given to
    something else.
    """
    try:
        _share_claims(shards)
        epoch = register_epoch(shards.first, topic_id)
        settled = settle(_share_claims(shards))
    except ClickHouseError as error:
        raise unavailable(error) from error
    if settled.get(topic_id) != epoch:
        raise WarehouseUnavailable(f"{topic_id} is being numbered: {epoch}, {settled.get(topic_id)}")
    return epoch


def _share_claims(shards: Shards) -> set[Claim]:
    """Have every shard know what one of them knows."""
    known = [set(claims(shards.at(index))) for index in range(shards.count)]
    every = set[Claim]().union(*known)
    for index, of_shard in enumerate(known):
        rows = [[each.epoch, each.topic_id, _instant(each)] for each in sorted(every - of_shard)]
        if rows:
            shards.at(index).insert("kafka_epochs", rows, column_names=["epoch", "topic_id", "registered_at"])
    return every


def _instant(claim: Claim) -> datetime:
    return _BEGINNING + timedelta(microseconds=claim.claimed_at)
