"""UsageClient for asyncio: `track` never blocks the loop, and waiting is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from usage_billing_client.client import Stats, UsageClient
from usage_billing_client.errors import QueueFull
from usage_billing_client.events import Event, Value


class AsyncUsageClient:
    """The same client for coroutines. Takes UsageClient's arguments; its threads send, the loop never waits.

    when_full "block" suspends the coroutine that tracks, for block_seconds at most; others run on.
    """

    def __init__(self, address: str, key: str, *, when_full: str = "block", **options: Any) -> None:
        self._blocks = when_full == "block"
        self._seconds = float(options.get("block_seconds", 30.0))
        self._client = UsageClient(address, key, when_full="raise" if self._blocks else when_full, **options)  # type: ignore[arg-type]

    async def track(
        self,
        customer_id: str,
        event_name: str,
        value: Value = None,
        *,
        timestamp: datetime | None = None,
        event_id: str | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        """UsageClient.track. Raises ClientClosed; QueueFull by the policy."""
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    try:
                        self._client.track(
                            customer_id,
                            event_name,
                            value,
                            timestamp=timestamp,
                            event_id=event_id,
                            properties=properties,
                        )
                        return
                    except QueueFull:
                        if not self._blocks:
                            raise
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise QueueFull(f"no room within {self._seconds:g} s") from None

    async def track_all(self, events: Iterable[Event], *, position: str | None = None) -> None:
        """UsageClient.track_all, in a thread."""
        await asyncio.to_thread(self._client.track_all, events, position=position)

    async def persist(self, timeout: float = 30.0) -> None:
        """UsageClient.persist, in a thread."""
        await asyncio.to_thread(self._client.persist, timeout)

    async def flush(self, timeout: float = 30.0) -> None:
        """UsageClient.flush, in a thread."""
        await asyncio.to_thread(self._client.flush, timeout)

    async def close(self, timeout: float | None = None) -> None:
        """UsageClient.close, in a thread."""
        await asyncio.to_thread(self._client.close, timeout)

    @property
    def position(self) -> str | None:
        """UsageClient.position."""
        return self._client.position

    @property
    def waiting(self) -> int:
        """UsageClient.waiting."""
        return self._client.waiting

    def stats(self) -> Stats:
        """UsageClient.stats."""
        return self._client.stats()

    async def __aenter__(self) -> AsyncUsageClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
