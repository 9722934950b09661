"""POST /webhooks/stripe → events that Stripe signed → stripe_events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import stripe
import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing_job import metrics
from billing_job.collect.steps import Billing
from billing_job.collect.stripe_events import apply_event
from billing_job.stripe.api import StripeApi
from billing_job.stripe.errors import StripeFailure
from ledger.store import LedgerLog, LedgerUnavailable
from runtime.body import STRANGERS_MAX, ClientGone, Deadlines, Receive, headers_of, read_body
from runtime.health import Check
from runtime.problem import MEDIA_TYPE, Problem
from schemas.settings import Settings

log = structlog.get_logger(__name__)

PATH = "/webhooks/stripe"
BODY_BYTES_MAX = 1024 * 1024
TOLERANCE_SECONDS = 300
"""Age up to which a signature is taken: what was recorded can't be played back later. Stripe's own default."""
RETRY_SECONDS = 2.0
"""Stripe waits for the answer, and sends the event again if there is none."""


class WebhookRefused(Exception):
    """No event of Stripe's: signature or body are wrong."""


def verified_event(payload: bytes, signature: str | None, secrets: Sequence[str]) -> Mapping[str, Any]:
    """The event that Stripe signed with one of the secrets. Raises WebhookRefused."""
    try:
        text = payload.decode()
        _require_signature(text, signature or "", secrets)
        return msgspec.json.decode(text, type=dict[str, Any])
    except (stripe.SignatureVerificationError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise WebhookRefused(str(error)) from error


def _require_signature(text: str, signature: str, secrets: Sequence[str]) -> None:
    """Raises stripe.SignatureVerificationError."""
    if not signature.isascii():  # Stripe's library compares text, and fails with TypeError where it is not ASCII
        raise stripe.SignatureVerificationError("the signature is not ASCII", signature, text)
    for last, secret in enumerate(secrets, start=1 - len(secrets)):
        try:
            stripe.WebhookSignature.verify_header(text, signature, secret, TOLERANCE_SECONDS)
        except stripe.SignatureVerificationError:
            if not last:
                raise
        else:
            return


class StripeWebhooks:
    """The ASGI application of PATH, and what it holds open. start, then stop; `checks` are for /readyz."""

    def __init__(self, settings: Settings) -> None:
        # One for each endpoint at Stripe: of the owner's account, of connected ones, of before it was rolled.
        self._secrets = [each.strip() for each in settings.stripe_webhook_secret.get_secret_value().split(",")]
        quick = {"stripe_retry_seconds": min(settings.stripe_retry_seconds, RETRY_SECONDS)}
        self._billing = Billing(LedgerLog(settings), StripeApi(settings.model_copy(update=quick)))
        self._strangers = Deadlines(STRANGERS_MAX)
        self.app = Starlette(routes=[Route(PATH, self._answer, methods=["POST"])])
        self.checks: dict[str, Check] = {"ledger": self._billing.log.check}

    @property
    def ledger(self) -> LedgerLog:
        """The log that it follows."""
        return self._billing.log

    def start(self) -> None:
        """Raises LedgerUnavailable."""
        self._billing.log.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self._billing.log.stop)
        self._billing.api.close()

    async def _answer(self, request: Request) -> Response:
        outcome = "failed"
        try:
            outcome = await self._take(request)
            return Response(msgspec.json.encode({"outcome": outcome}), media_type="application/json")
        except WebhookRefused as refused:
            outcome = "refused"
            return _problem(Problem(400, "webhook_refused", str(refused)))
        except ClientGone:
            outcome = "gone"
            return Response(status_code=400)
        except Problem as problem:  # of the body
            outcome = "refused"
            return _problem(problem)
        except (StripeFailure, LedgerUnavailable) as error:
            # Anything but 2xx makes Stripe send it again.
            log.warning("stripe_webhook_failed", error=str(error))
            return _problem(Problem(503, "try_again", str(error), headers={"Retry-After": "5"}))
        finally:
            metrics.WEBHOOKS.labels(outcome).inc()

    async def _take(self, request: Request) -> str:
        headers = headers_of(cast(dict[str, Any], request.scope))
        try:
            payload = await read_body(cast(Receive, request.receive), headers, BODY_BYTES_MAX, self._strangers)
        except Problem as problem:
            if problem.status == 413:  # no event of Stripe's is as large
                raise WebhookRefused(f"larger than {BODY_BYTES_MAX} bytes") from None
            raise
        event = verified_event(payload, request.headers.get("Stripe-Signature"), self._secrets)
        return await run_in_threadpool(apply_event, self._billing, event)


def _problem(problem: Problem) -> Response:
    return Response(problem.body(), status_code=problem.status, media_type=MEDIA_TYPE, headers=dict(problem.headers))
