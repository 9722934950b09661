"""What a usage event is: its limits, and the model that names everything wrong with one.

The gateway's hot path decodes with msgspec (ingest_gateway/decode.py); this model has the last word on what an error
is called. A property test holds the two to the same verdict.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

EVENTS_PER_BATCH_MAX = 1000
TEXT_LENGTH_MAX = 256
PROPERTIES_MAX = 20
PROPERTY_KEY_LENGTH_MAX = 64
PROPERTY_VALUE_LENGTH_MAX = 256
VALUE_SCALE = 9  # digits after the point
VALUE_LIMIT = Decimal(10) ** 18  # |value| is below it
TIMESTAMP_MIN_US = 0
TIMESTAMP_AHEAD_US_MAX = 10 * 60 * 1_000_000

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def client_identity(event_id: str) -> str:
    """Identity of an event that its producer named."""
    return f"c:{event_id}"


def request_identity(idempotency_key: str, index: int) -> str:
    """Identity of the event at `index` of a request with an Idempotency-Key.

    The tag keeps kinds apart; the index comes last, after the last colon, so that no two keys meet.
    """
    return f"k:{idempotency_key}:{index}"


NO_IDENTITY = ""  # the event's own coordinates are its identity
