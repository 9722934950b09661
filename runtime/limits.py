"""What one API key and one organization may ask of a process: requests, failures and open streams; else 429."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from runtime.problem import Problem
from schemas.settings import Settings

FAILURES = frozenset({400, 403, 408, 413, 415, 422})
"""Answers that count as failures: requests that cost work and can't succeed. 404 and 409 are how clients find out."""
_NAMES_MAX = 10_000
_STREAM_RETRY_SECONDS = 5


class RateLimit:
    """At most so many in so many seconds by name; that many at once after a rest.

    A token bucket, kept as the time when it will be full again (GCRA, ITU-T I.371): a number a name, since it is asked
    once or twice a request. pyrate-limiter's takes 4 µs, this one 0.4. Which name is quiet longest is forgotten first,
    so that memory is bounded. Not locked: for one event loop.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._step = seconds / most
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, name: str) -> float:
        """Count one; the seconds to wait where it is one too many, 0 where it is not."""
        now, known = self._clock(), self._full_at
        before = known.pop(name, 0.0)
        full_at = (before if before > now else now) + self._step
        seconds = self._until_room(full_at, now)
        known[name] = before if seconds else full_at
        if len(known) > _NAMES_MAX:
            del known[next(iter(known))]
        return seconds

    def wait(self, name: str) -> float:
        """As take, but nothing is counted."""
        full_at = self._full_at.get(name)
        return 0.0 if full_at is None else self._until_room(full_at + self._step, self._clock())

    def _until_room(self, full_at: float, now: float) -> float:
        """Seconds until it may be that long until the bucket is full; 0 where it may now."""
        seconds = full_at - now - self._seconds
        return seconds if seconds > self._step / 1000 else 0.0  # less is rounding


class KeyLimits:
    """The limits of the settings, by key and by organization. One for each stage of a process."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = (
            RateLimit(settings.key_requests_per_second, 1.0, clock),
            RateLimit(settings.organization_requests_per_second, 1.0, clock),
        )
        self._failures = (
            RateLimit(settings.key_failures_per_minute, 60.0, clock),
            RateLimit(settings.organization_failures_per_minute, 60.0, clock),
        )
        self._any_failed = False
        self._streams_max = (settings.key_streams_max, settings.organization_streams_max)
        self._streams: Counter[str] = Counter()

    def admit(self, organization_id: str, key_id: str) -> None:
        """Count a request. Raises Problem 429 where it is one too many, or too many failed before."""
        name = f"{organization_id}\0{key_id}"
        if self._any_failed:
            of_key, of_organization = self._failures
            if seconds := of_key.wait(name) or of_organization.wait(organization_id):
                raise _too_many("failed requests", seconds)
        of_key, of_organization = self._requests
        if seconds := of_key.take(name) or of_organization.take(organization_id):
            raise _too_many("requests", seconds)

    def answered(self, organization_id: str, key_id: str, status: int) -> None:
        """Count the answer, where it is a failure."""
        if status in FAILURES:
            self._any_failed = True
            for limit, name in zip(self._failures, _names(organization_id, key_id), strict=True):
                limit.take(name)

    @contextmanager
    def stream(self, organization_id: str, key_id: str) -> Generator[None]:
        """An open stream. Raises Problem 429 where it is one too many."""
        names = _names(organization_id, key_id)
        if any(self._streams[name] >= most for name, most in zip(names, self._streams_max, strict=True)):
            raise _too_many("open streams", _STREAM_RETRY_SECONDS)
        self._streams.update(names)
        try:
            yield
        finally:
            self._streams.subtract(names)
            for name in names:
                if not self._streams[name]:
                    del self._streams[name]


def _names(organization_id: str, key_id: str) -> tuple[str, str]:
    return f"{organization_id}\0{key_id}", organization_id


def _too_many(what: str, seconds: float) -> Problem:
    retry_after = str(max(1, math.ceil(seconds)))
    detail = f"this key or its organization has too many {what}"
    return Problem(429, "too_many_requests", detail, headers={"retry-after": retry_after})
