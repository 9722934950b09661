"""Only a body that was signed with a known secret, and lately, is believed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook
from usage_billing_client import InvalidSignature, verify_webhook

SECRET, OTHER = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
AT = datetime(2026, 3, 30, 12, tzinfo=UTC)
BODY = '{"type":"alert.fired","id":"alert_1"}'


def headers(secret: str = SECRET) -> dict[str, str]:
    """As the reference library of Standard Webhooks signs."""
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(AT.timestamp())),
        "Webhook-Signature": Webhook(secret).sign("msg_1", AT, BODY),
    }


def test_a_signed_body_is_its_payload():
    payload = verify_webhook(BODY.encode(), headers(), SECRET, now=AT.timestamp() + 10)

    assert payload == {"type": "alert.fired", "id": "alert_1"}


def test_either_secret_holds_while_one_is_rotated():
    both = headers()
    both["Webhook-Signature"] = f"v1,aaaa v2,zzzz {headers(OTHER)['Webhook-Signature']}"

    assert verify_webhook(BODY.encode(), both, [SECRET, OTHER], now=AT.timestamp())


@pytest.mark.parametrize(
    ("body", "changed", "secret", "later"),
    [
        (BODY + " ", {}, SECRET, 0),
        (BODY, {}, OTHER, 0),
        (BODY, {}, SECRET, 301),
        (BODY, {}, SECRET, -301),
        (BODY, {"Webhook-Id": "msg_2"}, SECRET, 0),
        (BODY, {"Webhook-Timestamp": "soon"}, SECRET, 0),
        (BODY, {"Webhook-Signature": ""}, SECRET, 0),
        (BODY, {"Webhook-Signature": "v1,ümlaut"}, SECRET, 0),
    ],
    ids=["changed body", "other secret", "old", "from the future", "other id", "no time", "no signature", "not ASCII"],
)
def test_anything_else_is_refused(body: str, changed: dict[str, str], secret: str, later: int):
    with pytest.raises(InvalidSignature):
        verify_webhook(body.encode(), {**headers(), **changed}, secret, now=AT.timestamp() + later)


def test_a_missing_header_is_refused():
    with pytest.raises(InvalidSignature):
        verify_webhook(BODY.encode(), {}, SECRET, now=AT.timestamp())
