"""the event loop → ClickHouse: queries run in threads, through one client that is made when it is first needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from schemas.settings import Settings
from schemas.watermark import Watermark
from warehouse.client import ASIDE, PROMPT, ClickHouseError, Client, WarehouseUnavailable, connect, unavailable
from warehouse.coverage import coverage
from warehouse.epochs import newest_epochs

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
        self._client: Client | None = None
        self._aside_client: Client | None = None
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(QUERIES_MAX, thread_name_prefix="warehouse")
        self._aside = ThreadPoolExecutor(ASIDE_QUERIES_MAX, thread_name_prefix="warehouse-aside")

    async def run(self, query: Callable[Concatenate[Client, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """query(client, …) in a thread. Raises WarehouseUnavailable."""

        def call() -> R:
            return query(self.client(), *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def run_aside(self, query: Callable[Concatenate[Client, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`run` for what reads so much that pages don't wait for it; it waits for them."""

        def call() -> R:
            return query(self.aside_client(), *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._aside, call)

    def client(self) -> Client:
        """The client, which threads share. Blocks; raises WarehouseUnavailable."""
        with self._lock:
            if self._client is None:
                self._client = connect(self._settings, read_timeout_seconds=READ_SECONDS, more_settings=PROMPT)
            return self._client

    def aside_client(self) -> Client:
        """The client of `run_aside`, for results that are streamed. Blocks; raises WarehouseUnavailable."""
        with self._lock:
            if self._aside_client is None:
                self._aside_client = connect(
                    self._settings, read_timeout_seconds=ASIDE_READ_SECONDS, more_settings=ASIDE
                )
            return self._aside_client

    async def stored(self) -> Watermark | None:
        """Everything below it is in ClickHouse; None: no sink has stored anything yet. Raises WarehouseUnavailable."""
        return await self.run(self._stored)

    def _stored(self, client: Client) -> Watermark | None:
        try:
            epochs = newest_epochs(client)
            if epochs is None:
                return None
            return coverage(client, epochs.base, self._settings.event_partitions, epochs.own)
        except ClickHouseError as error:
            raise unavailable(error) from error

    def check(self) -> str | None:
        """None: ClickHouse answers. Blocks for a moment."""
        try:
            return None if self.client().ping() else "ClickHouse does not answer"
        except WarehouseUnavailable as error:
            return str(error)

    def close(self) -> None:
        for threads in (self._threads, self._aside):
            threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for client in (self._client, self._aside_client):
                if client is not None:
                    client.close()
