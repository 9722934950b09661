"""delivery → one signed request (Standard Webhooks), and what came of it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import httpx
import structlog
from standardwebhooks import Webhook

from dashboard.webhooks.targets import RefusedTarget, resolve
from runtime.clock import now_us
from runtime.one_by_one import reason_of
from schemas.settings import Settings
from schemas.webhook_delivery import Attempt, WebhookDelivery
from schemas.webhook_endpoint import WebhookEndpoint

log = structlog.get_logger(__name__)

ERROR_LENGTH_MAX = 200
_USER_AGENT = "usage-billing-webhooks/1"


class Sender:
    """Sends from one event loop. Neither redirects nor a proxy are followed: both would hide the target."""

    def __init__(self, settings: Settings) -> None:
        self._private = settings.webhook_private_targets
        self._seconds = settings.webhook_timeout_seconds
        self._client = httpx.AsyncClient(
            timeout=None,  # of the whole, by us: one for each read would let a slow answer last for ever
            follow_redirects=False,
            trust_env=False,
            # A kept connection was checked for another delivery's name, perhaps.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def send(self, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> Attempt:
        """Never raises for what the other side does: that is the attempt's outcome."""
        started, at = time.monotonic(), now_us()
        status, error = None, None
        try:
            async with asyncio.timeout(self._seconds):
                status = await self._post(endpoint, delivery)
            if not 200 <= status < 300:
                error = f"answered {status}"
        except RefusedTarget as refusal:
            error = str(refusal)
        except TimeoutError:
            error = f"no answer within {self._seconds:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as failure:
            error = f"{type(failure).__name__}: {failure}".rstrip(": ")
        except Exception as failure:  # of a secret or a payload that can't be sent: this delivery's, and no other's
            log.exception("webhook_not_sent", endpoint=endpoint.id, delivery=delivery.id)
            error = reason_of(failure)
        milliseconds = round((time.monotonic() - started) * 1000)
        return Attempt(at, status, error and error[:ERROR_LENGTH_MAX], milliseconds)

    async def _post(self, endpoint: WebhookEndpoint, delivery: WebhookDelivery) -> int:
        target = await resolve(endpoint.url, private=self._private)
        now = datetime.now(UTC)
        headers = {
            "Host": target.host_header,
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            "webhook-id": delivery.alert_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(endpoint.secret).sign(delivery.alert_id, now, delivery.payload),
        }
        request = self._client.build_request(
            "POST",
            target.url,
            content=delivery.payload.encode(),
            headers=headers,
            extensions={"sni_hostname": target.server_name},  # the certificate is the name's, not the address's
        )
        answer = await self._client.send(request, stream=True)  # what it says beyond its status is not read
        await answer.aclose()
        return answer.status_code

    async def close(self) -> None:
        await self._client.aclose()
