"""/v1/webhook_endpoints, and the sender: events → signed POSTs, repeated until they are accepted.

Source: Stripe API reference, "Webhook Endpoints"; "Receive Stripe events in your webhook endpoint" (signature,
retries: up to three days with exponential back-off; order is not guaranteed). The signature's time is the
machine's, not that of the stand-in's clock: receivers compare it with theirs.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from hashlib import sha256
from urllib.parse import urlsplit

import httpx
import msgspec

from stripe_standin import events
from stripe_standin.errors import refused
from stripe_standin.paging import newest, page
from stripe_standin.params import merged
from stripe_standin.records import WebhookEndpoint
from stripe_standin.route import Route
from stripe_standin.state import API_VERSION, Json, Scope, World, new_id
from stripe_standin.store import Delivery

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 16
WAIT_SECONDS_MAX = 3600.0
TIMEOUT_SECONDS = 20.0
CONCURRENT_MAX = 16


def render(scope: Scope, endpoint: WebhookEndpoint) -> Json:
    del scope
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "api_version": endpoint.api_version,
        "application": None,
        "created": endpoint.created,
        "description": endpoint.description,
        "enabled_events": endpoint.enabled_events,
        "livemode": False,
        "metadata": endpoint.metadata,
        "status": "enabled" if endpoint.enabled else "disabled",
        "url": endpoint.url,
    }


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refused(
            "Invalid URL: An explicit scheme (such as https) must be provided.", code="url_invalid", param="url"
        )
    return url


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    version = params.get("api_version")
    if version not in (None, API_VERSION):
        raise refused(f"Invalid API version: the stand-in sends events of {API_VERSION} only.", param="api_version")
    endpoint = WebhookEndpoint(
        id=new_id("we_1"),
        created=scope.now,
        url=_checked_url(params["url"]),
        enabled_events=params["enabled_events"],
        secret=new_id("whsec_", 32),
        connected=bool(params.get("connect")),
        api_version=version,
        description=params.get("description"),
        metadata=merged({}, params.get("metadata")),
    )
    scope.put(endpoint)
    return render(scope, endpoint) | {"secret": endpoint.secret}  # shown at creation only


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(WebhookEndpoint, path[0], "webhook_endpoint"))


def update(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    endpoint = scope.get(WebhookEndpoint, path[0], "webhook_endpoint")
    if "url" in params:
        endpoint.url = _checked_url(params["url"])
    if "enabled_events" in params:
        endpoint.enabled_events = params["enabled_events"]
    if "description" in params:
        endpoint.description = params["description"]
    if "disabled" in params:
        endpoint.enabled = not params["disabled"]
    if "metadata" in params:
        endpoint.metadata = merged(endpoint.metadata, params["metadata"])
    scope.put(endpoint)
    return render(scope, endpoint)


def delete(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    endpoint = scope.get(WebhookEndpoint, path[0], "webhook_endpoint")
    scope.remove(endpoint)
    return {"id": endpoint.id, "object": "webhook_endpoint", "deleted": True}


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    return page(
        newest(scope.all(WebhookEndpoint)),
        params,
        "/v1/webhook_endpoints",
        lambda e: render(scope, e),
        WebhookEndpoint.NOUN,
    )


def signature(secret: str, body: bytes, at: int) -> str:
    """The Stripe-Signature header of a body sent at a time."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, sha256).hexdigest()
    return f"t={at},v1={digest}"


class Sender:
    """Sends what is in the world's outbox; an endpoint that does not answer 2xx is asked again later."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._client = httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False)
        self._slots = asyncio.Semaphore(CONCURRENT_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self) -> None:
        """Begin to send what was queued since; call after the commit that queued it."""
        for delivery in self._world.outbox:
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._world.outbox.clear()

    @property
    def pending(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def _deliver(self, delivery: Delivery) -> None:
        store = self._world.store
        while True:
            endpoint = self._world.endpoint(delivery.endpoint)
            if endpoint is None or delivery.attempts >= ATTEMPTS_MAX:
                break
            async with self._slots:
                accepted = await self._send(delivery, endpoint)
            if accepted:
                break
            wait = min(WAIT_SECONDS_MAX, self._world.settings.webhook_retry_seconds * 2.0**delivery.attempts)
            delivery = delivery._replace(attempts=delivery.attempts + 1)
            store.put_delivery(delivery)
            store.commit()
            await asyncio.sleep(wait)
        store.remove_delivery(delivery)
        store.commit()

    async def _send(self, delivery: Delivery, endpoint: WebhookEndpoint) -> bool:
        stored = self._world.store.event(delivery.event)
        if stored is None:
            return True
        body = msgspec.json.encode(events.render(self._world.store, stored))
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(endpoint.secret, body, int(time.time())),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        try:
            answer = await self._client.post(endpoint.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            log.warning("webhook %s to %s: %r", stored.type, endpoint.url, error)
            return False
        if not answer.is_success:
            log.warning("webhook %s to %s: answered %d", stored.type, endpoint.url, answer.status_code)
        return answer.is_success


ROUTES = (
    Route(
        "POST",
        "/v1/webhook_endpoints",
        "WebhookEndpointCreateParams",
        "url enabled_events api_version connect description metadata",
        create,
    ),
    Route("GET", "/v1/webhook_endpoints", "WebhookEndpointListParams", "limit starting_after ending_before", list_all),
    Route("GET", "/v1/webhook_endpoints/{}", "WebhookEndpointRetrieveParams", "", retrieve),
    Route(
        "POST",
        "/v1/webhook_endpoints/{}",
        "WebhookEndpointUpdateParams",
        "url enabled_events description disabled metadata",
        update,
    ),
    Route("DELETE", "/v1/webhook_endpoints/{}", "WebhookEndpointDeleteParams", "", delete),
)
