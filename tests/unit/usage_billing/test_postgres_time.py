"""Timestamps as Postgres exports them."""

import pytest

from schemas.period import parse_rfc3339
from usage_billing.postgres_time import from_postgres

us = parse_rfc3339


@pytest.mark.parametrize(
    ("exported", "instant"),
    [
        ("2026-03-30 12:00:00+00",          "2026-03-30T12:00:00Z"),
        ("2026-03-30 12:00:00.123+02",      "2026-03-30T10:00:00.123Z"),
        ("2026-03-30 12:00:00.1234567+05:30", "2026-03-30T06:30:00.123456Z"),
        ("1970-01-01 00:19:32.5+00:19:32",  "1970-01-01T00:00:00.5Z"),
        ("2026-03-30T12:00:00-07:00",       "2026-03-30T19:00:00Z"),
    ],
)  # fmt: skip
def test_postgres_writes_offsets_without_minutes_and_with_seconds(exported, instant):
    assert us(from_postgres(exported)) == us(instant)


@pytest.mark.parametrize("text", ["2026-03-30 12:00:00", "yesterday", "2026-03-30+02:00:99"])
def test_what_postgres_would_not_write_is_left_as_it_is(text):
    assert from_postgres(text) == text
