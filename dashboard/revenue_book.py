"""organization → revenue of its open cycles, a few seconds old: priced by a thread, only while someone looks."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from catalog.view import CatalogView
from dashboard.live_view import LiveView
from dashboard.revenue import OpenRevenue, Revenue

AGE_SECONDS = 2.0
SHARE = 10  # the thread rests at least this many times as long as it worked
WAIT_SECONDS = 0.05  # enough where little has changed; a page does not wait for more


class RevenueBook:
    """Answers at once with what it knows, and has it renewed where that is old."""

    def __init__(self, view: CatalogView, live: LiveView) -> None:
        self._view = view
        self._live = live
        self._open: dict[str, OpenRevenue] = {}
        self._known: dict[str, Revenue] = {}
        self._rest_until: dict[str, float] = {}
        self._renewing: dict[str, asyncio.Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="revenue")

    async def of(self, organization_id: str, now: int) -> Revenue | None:
        """None: it is being priced for the first time, and that takes a moment. now: µs."""
        renewing = self._renewing.get(organization_id)
        if renewing is None and time.monotonic() >= self._rest_until.get(organization_id, 0.0):
            loop = asyncio.get_running_loop()
            renewing = loop.run_in_executor(self._thread, self._renew, organization_id, now)
            self._renewing[organization_id] = renewing
            renewing.add_done_callback(lambda _: self._renewing.pop(organization_id, None))
        if renewing is not None:
            # asyncio.wait leaves it running when the time is over.
            await asyncio.wait((renewing,), timeout=WAIT_SECONDS)
        return self._known.get(organization_id)

    def _renew(self, organization_id: str, now: int) -> None:
        started = time.monotonic()
        book = self._open.get(organization_id)
        if book is None:
            book = self._open[organization_id] = OpenRevenue(self._view, self._live, organization_id)
        self._known[organization_id] = book.at(now)
        ended = time.monotonic()
        self._rest_until[organization_id] = ended + max(AGE_SECONDS, SHARE * (ended - started))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
