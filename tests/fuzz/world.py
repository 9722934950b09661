"""The whole HTTP service in this process: real catalog on a real broker, real engine, no socket."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
from types import TracebackType
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from billing_job.collect.webhooks import StripeWebhooks
from catalog.record import CatalogObject
from catalog.store import CatalogStore, CatalogUnavailable
from catalog.view import Refusal
from dashboard.app import Dashboard
from dashboard.pages.session import COOKIE, Sessions
from ingest_gateway.app import Gateway
from runtime.body import App
from runtime.kafka.admin import create_topics
from runtime.logging import configure_logging
from schemas.organization import DEFAULT_ORGANIZATION, ApiKey
from schemas.settings import Settings
from usage_billing.billing_adapter import BillingAdapter
from usage_billing.bootstrap import ADMIN_KEY_ID, bootstrap
from usage_billing.serve import Composition
from warehouse.migrate import migrate

OBJECTS_MAX = 2000
"""The catalog keeps everything for ever: a million inputs must not be told from a leak."""


class BoundedCatalog(CatalogStore):
    """Takes no more than so many records; what it refuses is answered 503, as when the log is away."""

    records = 0

    def submit(self, state: CatalogObject, expected_version: int) -> Future[Refusal | None]:
        if self.records >= OBJECTS_MAX:
            raise CatalogUnavailable("the fuzzer's catalog is full")
        self.records += 1
        return super().submit(state, expected_version)

    @property
    def full(self) -> bool:
        return self.records >= OBJECTS_MAX


class FuzzWorld:
    """An async context manager. app: what granian would serve. cookie, csrf_token: of a visitor with an admin key."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        configure_logging(settings, "fuzz")
        create_topics(settings)
        migrate(settings)
        self.catalog = BoundedCatalog(settings)
        self.cookie = self.csrf_token = ""
        self.app: App
        self._parts = contextlib.AsyncExitStack()

    async def __aenter__(self) -> FuzzWorld:
        parts = self._parts
        parts.enter_context(self.catalog)
        await asyncio.to_thread(bootstrap, self.settings, self.catalog)
        gateway = Gateway(self.settings, self.catalog)
        gateway.start()
        parts.push_async_callback(gateway.stop)
        webhooks = StripeWebhooks(self.settings)
        await asyncio.to_thread(webhooks.start)
        parts.push_async_callback(webhooks.stop)
        billing = BillingAdapter(self.settings, self.catalog, webhooks.ledger)
        parts.callback(billing.close)
        pages = Dashboard(self.settings, self.catalog, billing)
        pages.start()
        parts.push_async_callback(pages.stop)
        self._routes = pages.app.routes
        self.app = Composition(gateway, cast(App, webhooks.app), cast(App, pages.app), {}, lambda _: True)
        self.openapi: dict[str, Any] = pages.app.openapi()
        self._sign_in(pages.app.state.sessions)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._parts.aclose()

    def _sign_in(self, sessions: Sessions) -> None:
        key = self.catalog.view.get(ApiKey, DEFAULT_ORGANIZATION, ADMIN_KEY_ID)
        assert key is not None
        session, cookie = sessions.start(key)
        self.cookie, self.csrf_token = f"{COOKIE}={cookie}", session.csrf_token

    def routes(self) -> list[tuple[str, str]]:
        """Method and path of every route; parameters in braces."""
        found = [("POST", "/api/v1/usage/events"), ("POST", "/api/v1/usage/events/void"), ("POST", "/webhooks/stripe")]
        return found + [
            (method, route.path)
            for route in _leaves(self._routes)
            for method in sorted((route.methods or set[str]()) - {"HEAD"})
        ]


def _leaves(routes: list[BaseRoute]) -> list[APIRoute]:
    return [route for route in routes if isinstance(route, APIRoute)]
