"""Kafka's topic id → epoch, the number of an incarnation of usage.events, kept in ClickHouse.

A partition whose log has lost its end goes on in an epoch of its own: offsets that were read are given again to other
messages, and order is (epoch, offset, index). It is numbered like a topic, under a name that says where it begins.

ClickHouse has no unique keys, so a number is claimed by writing it and then looking whether another topic claimed the
same: the earlier claim holds, the other topic claims a higher one. Numbers only grow.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.log_break import log_id
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


@dataclass(frozen=True, slots=True)
class Break:
    """A partition's log had lost its end. start: first offset of what came after. epoch: of that."""

    start: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Epochs:
    """Which epoch each message of a topic is of. base: the topic's. breaks: partition → its breaks, oldest first."""

    topic_id: str
    base: int
    breaks: Mapping[int, tuple[Break, ...]] = field(default_factory=dict[int, tuple[Break, ...]])

    @property
    def own(self) -> dict[int, int]:
        """Partition → its epoch now, where that is not the topic's: as a Watermark has it."""
        return {partition: breaks[-1].epoch for partition, breaks in self.breaks.items() if breaks}

    def of(self, partition: int) -> tuple[tuple[int, int], ...]:
        """(first offset, epoch) of each epoch of a partition, oldest first."""
        return ((0, self.base), *((each.start, each.epoch) for each in self.breaks.get(partition, ())))

    def in_log(self, partition: int) -> tuple[tuple[int, int], ...]:
        """`of` without those of which the log has nothing any more: it lost their beginning with a later end."""
        found: list[tuple[int, int]] = []
        for start, epoch in reversed(self.of(partition)):
            if not found or start < found[-1][0]:
                found.append((start, epoch))
        return tuple(reversed(found))

    def at(self, partition: int, offset: int) -> int:
        """The epoch of the message that the log has at an offset now."""
        return next(epoch for start, epoch in reversed(self.of(partition)) if offset >= start)

    def start(self, partition: int) -> int:
        """First offset of the partition's epoch of now."""
        return self.of(partition)[-1][0]

    def log_id(self, partition: int) -> str:
        """Names what the partition's offsets of now are of; see schemas.log_break."""
        return log_id(self.topic_id, len(self.breaks.get(partition, ())))


def epochs(client: Client) -> dict[str, int]:
    """Topic id, or name of a break → epoch."""
    return settle(claims(client))


def lookup_epochs(client: Client, topic_id: str) -> Epochs:
    """The epochs of a topic. Raises UnknownTopic."""
    found = epochs(client)
    if topic_id not in found:
        raise UnknownTopic(f"topic {topic_id} has no epoch: no sink has read it yet")
    return _epochs_of(topic_id, found)


def newest_epochs(client: Client) -> Epochs | None:
    """Of the topic that was numbered last; None: there is none."""
    found = epochs(client)
    topics = {name: epoch for name, epoch in found.items() if not _is_break(name, found)}
    return _epochs_of(max(topics, key=topics.__getitem__), found) if topics else None


def _is_break(name: str, found: Mapping[str, int]) -> bool:
    """A topic's id is base64 and may have slashes of its own; a break is named after a topic that has a number."""
    topic_id, *place = name.rsplit("/", 3)
    return len(place) == 3 and topic_id in found


def _epochs_of(topic_id: str, found: Mapping[str, int]) -> Epochs:
    breaks: dict[int, list[tuple[int, Break]]] = defaultdict(list)
    for name, epoch in found.items():
        if name.startswith(f"{topic_id}/"):
            partition, number, start = map(int, name.removeprefix(f"{topic_id}/").split("/"))
            breaks[partition].append((number, Break(start, epoch)))
    return Epochs(
        topic_id,
        found[topic_id],
        {partition: tuple(each for _, each in sorted(some, key=_number)) for partition, some in breaks.items()},
    )


def _number(numbered: tuple[int, Break]) -> int:
    return numbered[0]


def break_name(topic_id: str, partition: int, number: int, start: int) -> str:
    """Under which what came after a partition's log had lost its end, the number-th time, is numbered like a topic."""
    return f"{topic_id}/{partition}/{number}/{start}"


def register_break(client: Client, topic_id: str, partition: int, number: int, start: int) -> int:
    """As register_epoch."""
    return register_epoch(client, break_name(topic_id, partition, number, start))


def lookup_epoch(client: Client, topic_id: str) -> int:
    """The epoch of a topic. Raises UnknownTopic."""
    return lookup_epochs(client, topic_id).base


def register_epoch(client: Client, topic_id: str) -> int:
    """The epoch of a topic, which is numbered if it is new. Safe when several services start at once.

    Raises EpochsExhausted.
    """
    for _ in range(_CLAIMS_MAX):
        found = claims(client)
        if topic_id in settle(found):
            _wait_until_settled(client)
            if (number := epochs(client).get(topic_id)) is not None:
                return number
            continue
        epoch = max((claim.epoch for claim in found), default=0) + 1
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


def claims(client: Client) -> list[Claim]:
    """All that were made. Raises ClickHouseError."""
    query = """
        SELECT topic_id, epoch, toUnixTimestamp64Micro(min(registered_at)) FROM kafka_epochs GROUP BY topic_id, epoch
    """
    return [Claim(int(at), str(topic_id), int(epoch)) for topic_id, epoch, at in client.query(query).result_rows]
