"""POST /webhooks/stripe → ledger: a webhook is a hint. Verify it, read the object again, apply what that says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
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
from billing_job.charge import is_news, observe
from billing_job.ledger import LedgerLog, LedgerUnavailable
from billing_job.steps import Billing
from billing_job.stripe_api import StripeApi, StripeFailure, StripeRefused
from billing_job.stripe_objects import seen_invoice
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

# What changes an invoice without us. Other events, also of later versions, are answered and left alone.
_OF_AN_INVOICE = frozenset(
    {
        "invoice.finalization_failed",
        "invoice.marked_uncollectible",
        "invoice.overdue",
        "invoice.paid",
        "invoice.payment_action_required",
        "invoice.payment_failed",
        "invoice.voided",
    }
)
_NAMING_AN_INVOICE = ("credit_note.",)


class WebhookRefused(Exception):
    """No event of Stripe's: signature or body are wrong."""


def verified_event(payload: bytes, signature: str | None, secret: str) -> Mapping[str, Any]:
    """The event that Stripe signed. Raises WebhookRefused."""
    try:
        text = payload.decode()
        stripe.WebhookSignature.verify_header(text, signature or "", secret, TOLERANCE_SECONDS)
        return msgspec.json.decode(text, type=dict[str, Any])
    except (stripe.SignatureVerificationError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise WebhookRefused(str(error)) from error


def invoice_named(event: Mapping[str, Any]) -> str | None:
    """Id of the Stripe invoice that the event is news of; None: none of ours to act on. Pure."""
    kind = event.get("type")
    data: object = event.get("data")
    thing = cast("dict[str, Any]", data).get("object") if isinstance(data, dict) else None
    if not isinstance(kind, str) or not isinstance(thing, dict):
        return None
    named: object = None
    if kind in _OF_AN_INVOICE:
        named = cast("dict[str, Any]", thing).get("id")
    elif kind.startswith(_NAMING_AN_INVOICE):
        named = cast("dict[str, Any]", thing).get("invoice")
    return named if isinstance(named, str) else None


def apply_event(billing: Billing, event: Mapping[str, Any]) -> str:
    """What came of it: `ignored`, `known` or `applied`. Raises StripeFailure, LedgerUnavailable."""
    named = invoice_named(event)
    invoice = None if named is None else billing.log.state.by_stripe_id(named)
    if named is None or invoice is None or invoice.fixed is None:
        return "ignored"  # not of an invoice of ours, or of a draft that its run is about to record
    if event["type"] in _OF_AN_INVOICE:
        hint = seen_invoice(event["data"]["object"], billing.clock())
        if not is_news(hint, invoice.stripe):
            return "known"
    account = invoice.fixed.seller.stripe_account_id
    try:
        seen = billing.api.invoice(named, account)
    except StripeRefused as refused:
        if refused.status == 404:
            return "ignored"
        raise
    before = invoice.state
    after = observe(billing, invoice, seen)
    log.info("stripe_webhook", type=event["type"], invoice=invoice.id, before=before, after=after.state)
    return "applied"


class StripeWebhooks:
    """The ASGI application of PATH, and what it holds open. start, then stop; `checks` are for /readyz."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.stripe_webhook_secret.get_secret_value()
        quick = {"stripe_retry_seconds": min(settings.stripe_retry_seconds, RETRY_SECONDS)}
        self._billing = Billing(LedgerLog(settings), StripeApi(settings.model_copy(update=quick)))
        self.app = Starlette(routes=[Route(PATH, self._answer, methods=["POST"])])
        self.checks: dict[str, Check] = {"ledger": self._billing.log.check}

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
        except (StripeFailure, LedgerUnavailable) as error:
            # Anything but 2xx makes Stripe send it again.
            log.warning("stripe_webhook_failed", error=str(error))
            return _problem(Problem(503, "try_again", str(error), headers={"Retry-After": "5"}))
        finally:
            metrics.WEBHOOKS.labels(outcome).inc()

    async def _take(self, request: Request) -> str:
        payload = bytearray()
        async for part in request.stream():
            payload += part
            if len(payload) > BODY_BYTES_MAX:
                raise WebhookRefused(f"larger than {BODY_BYTES_MAX} bytes")
        event = verified_event(bytes(payload), request.headers.get("Stripe-Signature"), self._secret)
        return await run_in_threadpool(apply_event, self._billing, event)


def _problem(problem: Problem) -> Response:
    return Response(problem.body(), status_code=problem.status, media_type=MEDIA_TYPE, headers=dict(problem.headers))
