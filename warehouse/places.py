"""Where an event lies in the log ⇄ one number that keeps the log's order within a partition. Pure."""

from __future__ import annotations

Place = tuple[int, int, int, int]
"""epoch, partition, offset, index."""

ORDER_SQL = (
    "bitOr(bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)),"
    " toUInt64(kafka_index))"
)
"""The number of a row: 10 bits of epoch, 44 of offset and 10 of index; the tables allow no more of each."""

IDENTITY_HASH_SQL = (
    "cityHash64(toString(organization_id), customer_id, toString(event_name), identity, bitXor(position, message_hash))"
)
"""usage_accepted.identity_hash, of a row of usage_events."""

_OFFSETS, _INDEXES = 2**44, 2**10


def place_of(partition: int, order: int) -> Place:
    """The place that the number stands for."""
    return order >> 54, partition, (order >> 10) % _OFFSETS, order % _INDEXES


def order_of(place: Place) -> int:
    """The number of a place."""
    epoch, _, offset, index = place
    return epoch << 54 | offset << 10 | index
