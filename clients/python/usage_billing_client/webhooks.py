"""a webhook's body and headers → its payload, once the signature holds (Standard Webhooks 1.0)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from usage_billing_client.errors import InvalidSignature

TOLERANCE_SECONDS = 300


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Iterable[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> dict[str, Any]:
    """The payload of a webhook of this system.

    body: as it was received, byte for byte. headers: of any case. secrets: `whsec_…`, or several while one is rotated.
    now: seconds since 1970; the clock's by default.

    Raises InvalidSignature. A delivery may come twice: act once for each header `webhook-id`.
    Source: the Standard Webhooks specification, "Signature scheme".
    """
    known = {name.lower(): text for name, text in headers.items()}
    try:
        message, sent, signatures = (known[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        age = (time.time() if now is None else now) - int(sent)
    except (KeyError, ValueError):
        raise InvalidSignature("the headers webhook-id, webhook-timestamp and webhook-signature are missing") from None
    if abs(age) > tolerance_seconds:
        raise InvalidSignature(f"signed {age:.0f} s ago; at most {tolerance_seconds:.0f} s are allowed")
    given = [text.removeprefix("v1,") for text in signatures.split() if text.startswith("v1,")]
    signed = b".".join((message.encode(), sent.encode(), body))
    for secret in [secrets] if isinstance(secrets, str) else secrets:
        expected = base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()
        # Compared as bytes: a header may hold what is not ASCII, which compare_digest refuses as text.
        if any(hmac.compare_digest(expected.encode(), signature.encode()) for signature in given):
            return msgspec.json.decode(body)
    raise InvalidSignature("no signature is of a secret that was given")


def _key(secret: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret is whsec_ and base64") from None
