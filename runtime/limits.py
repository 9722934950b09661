"""What one API key and one organization may ask of a process: requests, failures and open streams; else 429."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from pyrate_limiter import Duration, Rate, RateItem, StateBucket, TokenBucket

from runtime.problem import Problem
from schemas.settings import Settings

FAILURES = frozenset({400, 403, 408, 413, 415, 422})
"""Answers that count as failures: requests that cost work and can't succeed. 404 and 409 are how clients find out."""
_NAMES_MAX = 10_000
_STREAM_RETRY_SECONDS = 5


class RateLimit:
    """At most so many a second or minute by name; that many at once after a rest. rate None: no limit.

    Which name is quiet longest is forgotten first, so that memory is bounded. Not locked: for one event loop.
    """

    def __init__(self, rate: Rate | None) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, StateBucket] = OrderedDict()

    def __len__(self) -> int:
        """Names of which something was counted."""
        return len(self._buckets)

    def take(self, name: str) -> float:
        """Count one; the seconds to wait where it is one too many, 0 where it is not."""
        if self._rate is None:
            return 0.0
        bucket = self._buckets.pop(name, None) or StateBucket([self._rate], TokenBucket())
        self._buckets[name] = bucket
        if len(self._buckets) > _NAMES_MAX:
            self._buckets.popitem(last=False)
        item = RateItem(name, cast(int, bucket.now()))
        return 0.0 if bucket.put(item) else max(1, cast(int, bucket.waiting(item))) / 1000

    def wait(self, name: str) -> float:
        """As take, but nothing is counted."""
        bucket = self._buckets.get(name)
        if self._rate is None or bucket is None or cast(int, bucket.count()) < self._rate.limit:
            return 0.0
        return self._rate.interval / self._rate.limit / 1000


class KeyLimits:
    """The limits of the settings, by key and by organization. One for each stage of a process."""

    def __init__(self, settings: Settings) -> None:
        self._requests = (
            RateLimit(_rate(settings.key_requests_per_second, Duration.SECOND)),
            RateLimit(_rate(settings.organization_requests_per_second, Duration.SECOND)),
        )
        self._failures = (
            RateLimit(_rate(settings.key_failures_per_minute, Duration.MINUTE)),
            RateLimit(_rate(settings.organization_failures_per_minute, Duration.MINUTE)),
        )
        self._any_for_requests = bool(settings.key_requests_per_second or settings.organization_requests_per_second)
        self._streams_max = (settings.key_streams_max, settings.organization_streams_max)
        self._streams: Counter[str] = Counter()

    def admit(self, organization_id: str, key_id: str) -> None:
        """Count a request. Raises Problem 429 where it is one too many, or too many failed before."""
        if not (self._any_for_requests or self._failures[0] or self._failures[1]):
            return  # as mostly, and it happens once a request
        names = _names(organization_id, key_id)
        for limit, name in zip(self._failures, names, strict=True):
            if seconds := limit.wait(name):
                raise _too_many("failed requests", seconds)
        for limit, name in zip(self._requests, names, strict=True):
            if seconds := limit.take(name):
                raise _too_many("requests", seconds)

    def answered(self, organization_id: str, key_id: str, status: int) -> None:
        """Count the answer, where it is a failure."""
        if status in FAILURES:
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


def _rate(most: int | None, interval: Duration) -> Rate | None:
    return None if most is None else Rate(most, interval)


def _too_many(what: str, seconds: float) -> Problem:
    retry_after = str(max(1, math.ceil(seconds)))
    detail = f"this key or its organization has too many {what}"
    return Problem(429, "too_many_requests", detail, headers={"retry-after": retry_after})
