"""What can go wrong, by what it means for the events: refused, unknown, not taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class UsageClientError(Exception):
    """Base of all errors of this package."""


class QueueFull(UsageClientError):
    """The queue has no room; the event was not taken. Raised by policy "raise", and by "block" after its time."""


class ClientClosed(UsageClientError):
    """The client was closed before this call; the event was not taken."""


class SpoolError(UsageClientError):
    """The spool can't be opened or written: no permission, disk full, or no file locks on this platform."""


class NotDelivered(UsageClientError):
    """Events were not acknowledged in time. The gateway may have some of them; a retry never counts twice.

    events: how many are left.
    kept: True when they lie in the spool and are sent by the next client that opens it.
    reason: the last failure, or None when nothing failed.
    """

    def __init__(self, events: int, *, kept: bool, reason: str | None) -> None:
        where = "kept in the spool" if kept else "in memory only"
        super().__init__(f"{events} events not acknowledged yet, {where}" + (f": {reason}" if reason else ""))
        self.events = events
        self.kept = kept
        self.reason = reason


class InvalidSignature(UsageClientError):
    """The webhook was not signed with this secret, or not within the tolerance: don't act on it."""


@dataclass(frozen=True, slots=True)
class EventError:
    """One thing that is wrong with an event. field: its path, None for the whole event. code: machine-readable."""

    field: str | None
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """An event that will never be accepted as it is. It was not counted and is not sent again.

    event: its fields as they were sent, or as they were given when they can't be spelled in JSON.
    errors: what is wrong, at least one.
    """

    event: Mapping[str, Any]
    errors: tuple[EventError, ...]
