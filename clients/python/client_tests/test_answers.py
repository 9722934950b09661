"""An HTTP answer decides what becomes of its batch."""

from __future__ import annotations

import json

import pytest
from usage_billing_client.answers import (
    BACKOFF_SECONDS_MAX,
    SETTINGS_SECONDS,
    Accepted,
    Later,
    Refused,
    TooLarge,
    delay,
    retry_after,
    verdict,
)
from usage_billing_client.errors import EventError

NOW = 1_774_872_000.0  # 2026-03-30T12:00:00Z


def answer(status: int, body: object = None, **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    return verdict(status, {name.replace("_", "-"): text for name, text in headers.items()}, content, NOW)


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (202, {"accepted": 2, "unmatched": 1, "receipt": []}, {}, Accepted(1)),
        (204, b"", {}, Accepted(0)),
        (413, b"", {}, TooLarge()),
        (429, {"title": "Too many requests"}, {"retry_after": "7"}, Later("429 Too many requests", 7.0)),
        (503, {"title": "Unavailable", "detail": "Kafka is away"}, {}, Later("503 Kafka is away", None)),
        (502, b"<html>proxy", {}, Later("502 <html>proxy", None)),
        (401, {"title": "Unauthorized"}, {}, Later("401 Unauthorized", SETTINGS_SECONDS)),
        (404, {"title": "Not found"}, {}, Later("404 Not found", SETTINGS_SECONDS)),
        (301, b"", {}, Later("301", SETTINGS_SECONDS)),
        (400, {"title": "Not JSON"}, {}, Refused(batch=(EventError(None, "refused", "400 Not JSON"),))),
        (
            422,
            {"errors": [{"index": 1, "field": "value", "code": "value_invalid", "message": "no number"}]},
            {},
            Refused({1: (EventError("value", "value_invalid", "no number"),)}),
        ),
        (
            422,
            {"errors": [{"index": None, "field": "events", "code": "too_many", "message": "1,001"}]},
            {},
            Refused({}, (EventError("events", "too_many", "1,001"),)),
        ),
    ],
)
def test_an_answer_becomes_a_verdict(status: int, body: object, headers: dict[str, str], expected: object):
    assert answer(status, body, **headers) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("Mon, 30 Mar 2026 12:00:10 GMT", 10.0),
        ("Mon, 30 Mar 2026 11:00:00 GMT", 0.0),
        ("999999999", 3600.0),
        ("soon", None),
        ("-1", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str | None, seconds: float | None):
    assert retry_after(text, NOW) == seconds


def test_backoff_grows_to_its_bound_and_is_spread():
    delays = [[delay(attempt, None) for _ in range(200)] for attempt in (1, 4, 60)]

    assert all(0 <= seconds <= 0.4 for seconds in delays[0])
    assert all(0 <= seconds <= 3.2 for seconds in delays[1])
    assert all(0 <= seconds <= BACKOFF_SECONDS_MAX for seconds in delays[2])
    assert max(delays[2]) - min(delays[2]) > BACKOFF_SECONDS_MAX / 3


def test_a_time_that_the_gateway_asks_for_is_kept():
    assert all(7.0 <= delay(1, 7.0) <= 8.4 for _ in range(100))
