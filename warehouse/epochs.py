"""Kafka's topic id → epoch, the number of an incarnation of usage.events, kept in ClickHouse.

ClickHouse has no unique keys, so a number is claimed by writing it and then looking whether another topic claimed the
same: the earlier claim holds, the other topic claims a higher one. Numbers only grow.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from warehouse.client import Client

EPOCH_MAX = 1023  # 10 bits of the order in the log
_CLAIMS_MAX = 20
_SETTLE_SECONDS = 0.3  # a claim that was written earlier is visible by then


class UnknownTopic(LookupError):
    """No sink has registered this incarnation of the topic yet: nothing of it is in ClickHouse."""


class EpochsExhausted(Exception):
    """The topic was made again more often than 10 bits can number."""


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """A topic wants a number. claimed_at: µs, the server's clock."""

    claimed_at: int
    topic_id: str
    epoch: int


def settle(claims: Iterable[Claim]) -> dict[str, int]:
    """Topic id → epoch: the first number that it claimed before any other topic did. Pure.

    Later claims change nothing, so that a number once given stays. A topic that lost its number to another is left out:
    it has to claim again.
    """
    holder: dict[int, str] = {}
    held: dict[str, int] = {}
    for claim in sorted(claims):
        if holder.setdefault(claim.epoch, claim.topic_id) == claim.topic_id:
            held.setdefault(claim.topic_id, claim.epoch)
    return held


def epochs(client: Client) -> dict[str, int]:
    """Topic id → epoch of every incarnation known."""
    return settle(_claims(client))


def lookup_epoch(client: Client, topic_id: str) -> int:
    """The epoch of a topic. Raises UnknownTopic."""
    found = epochs(client).get(topic_id)
    if found is None:
        raise UnknownTopic(f"topic {topic_id} has no epoch: no sink has read it yet")
    return found


def register_epoch(client: Client, topic_id: str) -> int:
    """The epoch of a topic, which is numbered if it is new. Safe when several services start at once.

    Raises EpochsExhausted.
    """
    for _ in range(_CLAIMS_MAX):
        claims = _claims(client)
        if topic_id in settle(claims):
            _wait_until_settled(client)
            found = epochs(client).get(topic_id)
            if found is not None:
                return found
            continue
        epoch = max((claim.epoch for claim in claims), default=0) + 1
        if epoch > EPOCH_MAX:
            break
        client.insert("kafka_epochs", [[epoch, topic_id]], column_names=["epoch", "topic_id"])
        time.sleep(_SETTLE_SECONDS)
    raise EpochsExhausted(f"topic {topic_id} could not be numbered")


def _wait_until_settled(client: Client) -> None:
    """Until the newest claim, which may be another service's, is old enough for any before it to be visible."""
    query = "SELECT max(registered_at) > now64(6) - toIntervalMillisecond({ms:UInt32}) FROM kafka_epochs"
    while client.query(query, parameters={"ms": int(_SETTLE_SECONDS * 1000)}).result_rows[0][0]:
        time.sleep(_SETTLE_SECONDS / 4)


def _claims(client: Client) -> list[Claim]:
    query = """
        SELECT topic_id, epoch, toUnixTimestamp64Micro(min(registered_at)) FROM kafka_epochs GROUP BY topic_id, epoch
    """
    return [Claim(int(at), str(topic_id), int(epoch)) for topic_id, epoch, at in client.query(query).result_rows]
