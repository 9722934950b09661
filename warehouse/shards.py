"""USAGE_CLICKHOUSE_SHARDS → a client of each server, and which of them to ask for a partition or a customer.

A customer's usage lies in one partition and a partition on one shard, so a question about them goes to one server, and
a question about several customers to each server for its own; answers are put together here. A server that does not
answer is an error of every question that needs it, and of no other.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from schemas.partition import partition_of
from schemas.settings import Settings
from warehouse.client import READ_TIMEOUT_SECONDS, Client, WarehouseUnavailable, connect
from warehouse.placement import Misplaced, check_record, read_record

T = TypeVar("T")
R = TypeVar("R")


class Shards:
    """The servers that share usage, connected to when they are first needed. Threads may share it; close it after use.

    Without USAGE_CLICKHOUSE_SHARDS it is one server, which is asked for everything.
    """

    def __init__(self, connects: Sequence[Callable[[], Client]], partitions: int, *, checked: bool = True) -> None:
        """connects: makes a client of each. partitions: of usage.events."""
        self._connects = connects
        self._partitions = partitions
        self._checked = checked
        self._clients: list[Client | None] = [None] * len(connects)
        self._locks = [threading.Lock() for _ in connects]
        self._placed: Mapping[int, int] | None = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients:
            if client is not None:
                client.close()

    @property
    def count(self) -> int:
        return len(self._connects)

    # -- one of them ---------------------------------------------------------------------------------------------------

    @property
    def first(self) -> Client:
        """The one with catalog, ledger, alerts and dead letters. Raises WarehouseUnavailable, as all below."""
        return self.at(0)

    def at(self, index: int) -> Client:
        """Of a shard, from 0."""
        with self._locks[index]:
            client = self._clients[index]
            if client is None:
                client = self._connects[index]()
                try:
                    self._check(client, index)
                except BaseException:
                    client.close()
                    raise
                self._clients[index] = client
        return client

    def of(self, partition: int) -> Client:
        """Of the shard that has a partition."""
        return self.at(self.shard_of(partition))

    def of_customer(self, organization_id: str, customer_id: str) -> Client:
        """Of the shard that has a customer's usage."""
        return self.at(self._of_customer(organization_id, customer_id))

    def shard_of(self, partition: int) -> int:
        """From 0. Raises WarehouseUnavailable where no shard can be asked."""
        return self.placed[partition] if self.count > 1 else 0

    @property
    def placed(self) -> Mapping[int, int]:
        """Partition → its shard, from 0, of every partition."""
        if self.count == 1:
            return dict.fromkeys(range(self._partitions), 0)
        if self._placed is None:
            self._ask_placement()
        assert self._placed is not None, "one of the servers has said it"
        return self._placed

    # -- several of them -----------------------------------------------------------------------------------------------

    def by_partition(self, partitions: Iterable[int]) -> list[tuple[Client, list[int]]]:
        """Each shard concerned, with those of the partitions that it has."""
        return self._grouped(partitions, self.shard_of)

    def by_customer(
        self, wanted: Iterable[T], customer: Callable[[T], tuple[str, str]]
    ) -> list[tuple[Client, list[T]]]:
        """Each shard concerned, with what is wanted of its customers. customer: organization_id, customer_id."""
        return self._grouped(wanted, lambda each: self._of_customer(*customer(each)))

    def everywhere(self) -> list[tuple[Client, str]]:
        """Each shard that has partitions, with the condition on kafka_partition that a row is of one of them.

        What a partition left behind where it was before is in no answer.
        """
        if self.count == 1:
            return [(self.first, "1")]
        parts = self.by_partition(range(self._partitions))
        return [(client, f"kafka_partition IN ({', '.join(map(str, mine))})") for client, mine in parts]

    def _grouped(self, items: Iterable[T], shard_of: Callable[[T], int]) -> list[tuple[Client, list[T]]]:
        groups: dict[int, list[T]] = defaultdict(list)
        for item in items:
            groups[shard_of(item)].append(item)
        return [(self.at(shard), group) for shard, group in sorted(groups.items())]

    def _of_customer(self, organization_id: str, customer_id: str) -> int:
        if self.count == 1:
            return 0
        return self.shard_of(partition_of(organization_id, customer_id, self._partitions))

    # -- where partitions are ------------------------------------------------------------------------------------------

    def _check(self, client: Client, index: int) -> None:
        """That it is the server of its place, and says what the others say. Raises Misplaced."""
        if not self._checked:
            return
        record = read_record(client)
        check_record(record, index, self.count)
        if self.count == 1:
            return
        placed = {partition: at.shard for partition, at in record.placed.items()}
        if sorted(placed) != list(range(self._partitions)):
            raise Misplaced(f"shard {index + 1} does not say where partitions are: run usage-billing migrate")
        if self._placed is not None and placed != self._placed:
            raise Misplaced(f"shard {index + 1} says otherwise where partitions are: run usage-billing migrate")
        self._placed = placed

    def _ask_placement(self) -> None:
        problem: WarehouseUnavailable | None = None
        for index in range(self.count):
            try:
                self.at(index)
            except Misplaced:
                raise
            except WarehouseUnavailable as error:
                problem = error
            else:
                return
        assert problem is not None, "there is a first shard"
        raise problem


Store = Client | Shards
"""One server, or those that share usage."""


def open_shards(
    settings: Settings,
    *,
    read_timeout_seconds: int = READ_TIMEOUT_SECONDS,
    more_settings: Mapping[str, Any] = MappingProxyType({}),
) -> Shards:
    """The settings' servers; see warehouse.client.connect. Raises WarehouseUnavailable where none of them answers."""

    def connecting(shard: int) -> Callable[[], Client]:
        return lambda: connect(
            settings, shard=shard, read_timeout_seconds=read_timeout_seconds, more_settings=more_settings
        )

    shards = Shards([connecting(shard) for shard in range(len(settings.clickhouse_dsns))], settings.event_partitions)
    if shards.count == 1:
        shards.at(0)
    else:
        shards.shard_of(0)
    return shards


def connect_shard(settings: Settings, shard: int) -> Client:
    """Of one server alone, once it is known to be the one of its place. Raises WarehouseUnavailable."""
    client = connect(settings, shard=shard)
    try:
        check_record(read_record(client), shard, len(settings.clickhouse_dsns))
    except BaseException:
        client.close()
        raise
    return client


def partitions_at(client: Client, settings: Settings, shard: int) -> list[int]:
    """Those of usage.events that a server has, as it says itself. Raises WarehouseUnavailable."""
    if len(settings.clickhouse_dsns) == 1:
        return list(range(settings.event_partitions))
    placed = read_record(client).placed
    if not placed:
        raise Misplaced(f"shard {shard + 1} does not say where partitions are: run usage-billing migrate")
    return sorted(partition for partition, at in placed.items() if at.shard == shard)


def shards_of(store: Store) -> Shards:
    """What is asked as shards may be one server's client."""
    if isinstance(store, Shards):
        return store
    return Shards([lambda: store], 1, checked=False)


def at_once(parts: Sequence[tuple[Client, T]], work: Callable[[Client, T], R]) -> list[R]:
    """The work of each part, in their order; several servers work at the same time. Raises what one of them does."""
    if len(parts) <= 1:
        return [work(client, part) for client, part in parts]
    with ThreadPoolExecutor(len(parts), thread_name_prefix="shard") as threads:
        return list(threads.map(lambda part: work(*part), parts))
