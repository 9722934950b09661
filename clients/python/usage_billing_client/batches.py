"""encoded events → batches: at most so many events, and so many bytes, in a request."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from usage_billing_client.events import join_body, split_body

EVENTS_MAX = 1000  # the API's limit
BYTES_MAX = 1_000_000  # of a body before compression; well below the gateway's limit
_WRAPPING = len(b'{"events":[]}')
_LEVEL = 1  # usage compresses tenfold at the quickest level; the next ones cost more CPU than they save


@dataclass(frozen=True, slots=True)
class Batch:
    """A request's worth of events. id: of the store that keeps it. events: how many. body: gzip of the JSON."""

    id: int
    events: int
    body: bytes


def compress(body: bytes) -> bytes:
    """gzip of a body; the same bytes for the same body."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


def unpack(batch: Batch) -> list[msgspec.Raw]:
    """The batch's encoded events, in order."""
    return split_body(zlib.decompress(batch.body, 16 + zlib.MAX_WBITS))


def cut(
    events: Iterable[bytes | msgspec.Raw], events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX
) -> Iterator[list[bytes | msgspec.Raw]]:
    """Consecutive runs of events whose bodies keep both limits; an event larger than bytes_max is a run of its own."""
    run: list[bytes | msgspec.Raw] = []
    size = _WRAPPING
    for event in events:
        cost = len(bytes(event)) + 1
        if run and (len(run) == events_max or size + cost > bytes_max):
            yield run
            run, size = [], _WRAPPING
        run.append(event)
        size += cost
    if run:
        yield run


def packed(run: list[bytes | msgspec.Raw]) -> tuple[int, bytes]:
    """(events, compressed body) of a run."""
    return len(run), compress(join_body(run))
