"""usage.alerts record ⇄ bytes: a rule's threshold was reached, once per rule, customer and cycle.

A crash may publish an alert again: readers collapse them by id and keep the first. Partition and key: the customer's.
"""

from __future__ import annotations

import msgspec

from schemas.alert_rule import AlertKind, NotSent
from schemas.partition import customer_key


class UnreadableAlert(ValueError):
    """Bytes in usage.alerts that are not an alert."""


class Alert(msgspec.Struct, frozen=True):
    """id: schemas.alert_rule.alert_id, the same however often it is published.

    threshold: the rule's, quantity: what was reached when it fired; plain decimal strings, in the unit of the kind.
    cycle_start, cycle_end, fired_at: µs since 1970. currency: of an amount, else None. not_sent: why it is shown only;
    None: it goes to webhooks.
    """

    id: str
    organization_id: str
    rule_id: str
    customer_id: str
    meter_id: str
    kind: AlertKind
    threshold: str
    quantity: str
    cycle_start: int
    cycle_end: int
    fired_at: int
    currency: str | None = None
    not_sent: NotSent | None = None

    @property
    def key(self) -> bytes:
        return customer_key(self.organization_id, self.customer_id).encode()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Alert)


def encode(alert: Alert) -> bytes:
    return _encoder.encode(alert)


def decode(message: bytes) -> Alert:
    """Raises UnreadableAlert."""
    try:
        return _decoder.decode(message)
    except msgspec.MsgspecError as error:
        raise UnreadableAlert(str(error)) from error
