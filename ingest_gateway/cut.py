"""a coalesced batch → messages, each at most MESSAGE_BYTES_MAX. Pure.

Most batches are one message: they are encoded, and their length says so. Only of one that is too long are the events'
sizes worked out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import TypeVar

from ingest_gateway.coalesce import Claim
from schemas.event import PROPERTIES_MAX, PROPERTY_KEY_LENGTH_MAX, PROPERTY_VALUE_LENGTH_MAX, TEXT_LENGTH_MAX
from schemas.topics import MESSAGE_BYTES_MAX
from schemas.usage_batch import HEADER_LENGTH, UsageBatch, encode

T = TypeVar("T")

_VARINT_BYTES_MAX = 10
_LENGTH_BYTES_MAX = 3  # the varint of a length below a mebibyte
_UTF8_BYTES_MAX = 4
_VALUE_BYTES_MAX = 16
_TEXTS = 4  # organization_id, customer_id, event_name, identity
_IDENTITY_EXTRA = 8  # "k:…:999"
_COLUMNS = 7
# Framing, batch_id, received_at, and each column's count and end.
HEAD_BYTES_MAX = HEADER_LENGTH + 16 + _VARINT_BYTES_MAX + _COLUMNS * (_LENGTH_BYTES_MAX + 1)
EVENT_BYTES_MAX = (
    _TEXTS * (_UTF8_BYTES_MAX * TEXT_LENGTH_MAX + _LENGTH_BYTES_MAX)
    + _IDENTITY_EXTRA
    + _VARINT_BYTES_MAX
    + 1 + _LENGTH_BYTES_MAX + _VALUE_BYTES_MAX
    + _LENGTH_BYTES_MAX + 1
    + PROPERTIES_MAX
    * (_UTF8_BYTES_MAX * (PROPERTY_KEY_LENGTH_MAX + PROPERTY_VALUE_LENGTH_MAX) + 2 * _LENGTH_BYTES_MAX)
)  # fmt: skip
"""The largest event that validates: 30 kB. It fits into a message, so every batch that validates can be cut."""


def messages(
    batch: UsageBatch, claims: Sequence[Claim[T]], batch_id: Callable[[], bytes], bytes_max: int = MESSAGE_BYTES_MAX
) -> Iterator[tuple[bytes, Sequence[Claim[T]]]]:
    """The batch as encoded messages, in its order, with the claims on each.

    A request's events stay in one message unless they alone are too large for it. Messages after the first have
    batch_ids of their own. bytes_max: at least HEAD_BYTES_MAX + EVENT_BYTES_MAX.
    """
    whole = encode(batch)
    if len(whole) <= bytes_max:
        yield whole, claims
        return
    start = 0
    for part in _parts(claims, event_bytes(batch), bytes_max - HEAD_BYTES_MAX):
        end = start + sum(claim.events for claim in part)
        yield encode(_rows(batch, start, end, batch_id() if start else batch.batch_id)), part
        start = end


def event_bytes(batch: UsageBatch) -> list[int]:
    """For each event, what it takes in an encoded message, or a few bytes more."""
    sizes = [_VARINT_BYTES_MAX + (1 if value is None else 1 + _LENGTH_BYTES_MAX + len(value)) for value in batch.value]
    for column in (batch.organization_id, batch.customer_id, batch.event_name, batch.identity):
        for index, text in enumerate(column):
            sizes[index] += _text_bytes(text)
    for index, properties in enumerate(batch.properties):
        sizes[index] += _LENGTH_BYTES_MAX + 1 + sum(_text_bytes(text) for pair in properties.items() for text in pair)
    return sizes


def _text_bytes(text: str) -> int:
    return _LENGTH_BYTES_MAX + (len(text) if text.isascii() else len(text.encode()))


def _parts(claims: Sequence[Claim[T]], sizes: Sequence[int], room: int) -> Iterator[list[Claim[T]]]:
    """The claims on each message, as few messages as that order allows. sizes: of each event."""
    part, left, at = list[Claim[T]](), room, 0
    for claim in claims:
        whole = sum(sizes[at : at + claim.events])
        units = [(claim.events, whole)] if whole <= room else [(1, size) for size in sizes[at : at + claim.events]]
        at += claim.events
        for events, size in units:
            if size > left and part:
                yield part
                part, left = [], room
            left -= size
            if part and part[-1].owner is claim.owner:
                events += part.pop().events
            part.append(Claim(claim.owner, events))
    yield part


def _rows(batch: UsageBatch, start: int, end: int, batch_id: bytes) -> UsageBatch:
    columns = {each.name: getattr(batch, each.name) for each in fields(batch)}
    cut = {name: column[start:end] for name, column in columns.items() if isinstance(column, (list, tuple))}
    return replace(batch, batch_id=batch_id, **cut)
