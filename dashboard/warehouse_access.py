"""the event loop → ClickHouse: queries run in threads, through clients that are made when they are first needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from schemas.partition import partition_of
from schemas.settings import Settings
from schemas.watermark import Watermark
from warehouse.client import ASIDE, PROMPT, ClickHouseError, WarehouseUnavailable, unavailable
from warehouse.coverage import coverage
from warehouse.epochs import newest_epochs
from warehouse.shards import Shards, open_shards

P = ParamSpec("P")
R = TypeVar("R")

QUERIES_MAX = 4
ASIDE_QUERIES_MAX = 3
READ_SECONDS = 30
ASIDE_READ_SECONDS = 300


class WarehouseAccess:
    """At most QUERIES_MAX queries run at a time, and ASIDE_QUERIES_MAX aside of them; further ones wait their turn."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shards: Shards | None = None
        self._aside_shards: Shards | None = None
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(QUERIES_MAX, thread_name_prefix="warehouse")
        self._aside = ThreadPoolExecutor(ASIDE_QUERIES_MAX, thread_name_prefix="warehouse-aside")

    async def run(self, query: Callable[Concatenate[Shards, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """query(shards, …) in a thread. Raises WarehouseUnavailable."""

        def call() -> R:
            return query(self.shards(), *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def run_aside(self, query: Callable[Concatenate[Shards, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`run` for what reads so much that pages don't wait for it; it waits for them."""

        def call() -> R:
            return query(self.aside_shards(), *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._aside, call)

    def shards(self) -> Shards:
        """The servers, whose clients threads share. Blocks; raises WarehouseUnavailable."""
        with self._lock:
            if self._shards is None:
                self._shards = open_shards(self._settings, read_timeout_seconds=READ_SECONDS, more_settings=PROMPT)
            return self._shards

    def aside_shards(self) -> Shards:
        """The servers as `run_aside` has them, for results that are streamed. Blocks; raises WarehouseUnavailable."""
        with self._lock:
            if self._aside_shards is None:
                self._aside_shards = open_shards(
                    self._settings, read_timeout_seconds=ASIDE_READ_SECONDS, more_settings=ASIDE
                )
            return self._aside_shards

    async def stored(self, organization_id: str = "", customer_id: str | None = None) -> Watermark | None:
        """Everything below it is in ClickHouse; None: no sink has stored anything yet. Raises WarehouseUnavailable.

        With a customer, of the shard that has its usage: another one may be away.
        """
        return await self.run(self._stored, organization_id, customer_id)

    def _stored(self, shards: Shards, organization_id: str, customer_id: str | None) -> Watermark | None:
        only: list[int] | None = None
        client = shards.first
        try:
            if customer_id is not None and shards.count > 1:
                shard = shards.shard_of(partition_of(organization_id, customer_id, self._settings.event_partitions))
                client, only = shards.at(shard), [p for p, at in shards.placed.items() if at == shard]
            epochs = newest_epochs(client)
            if epochs is None:
                return None
            return coverage(shards, epochs.base, self._settings.event_partitions, epochs.own, only=only)
        except ClickHouseError as error:
            raise unavailable(error) from error

    def check(self) -> str | None:
        """None: ClickHouse answers, of shards each. Blocks for a moment."""
        try:
            shards = self.shards()
            for index in range(shards.count):
                if not shards.at(index).ping():
                    return f"shard {index + 1} of ClickHouse does not answer" if index else "ClickHouse does not answer"
        except WarehouseUnavailable as error:
            return str(error)
        return None

    def close(self) -> None:
        for threads in (self._threads, self._aside):
            threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for shards in (self._shards, self._aside_shards):
                if shards is not None:
                    shards.close()
