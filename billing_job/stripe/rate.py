"""Stripe's limit of calls a second → this process's part of it, spread evenly over its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction
from urllib.parse import urlsplit

from schemas.settings import Settings

_STRIPE_HOST = "api.stripe.com"
# Source: Stripe, "Rate limits": 100 operations a second in live mode, 25 in test mode. A quarter is left to others.
_NO_SHARE_SECONDS = 0.2
_LIVE_CALLS_PER_SECOND = 75
_TEST_CALLS_PER_SECOND = 25


def calls_per_second(settings: Settings) -> int | None:
    """The limit to keep; None: none."""
    if settings.stripe_calls_per_second is not None:
        return settings.stripe_calls_per_second
    if urlsplit(settings.stripe_api_base).hostname != _STRIPE_HOST:
        return None
    return _LIVE_CALLS_PER_SECOND if is_live(settings) else _TEST_CALLS_PER_SECOND


def is_live(settings: Settings) -> bool:
    """Whether the key moves money."""
    return "_live_" in settings.stripe_api_key.get_secret_value()


class Pace:
    """Calls a second, for all threads, evenly: a part of the limit that may change while it is used."""

    def __init__(self, rate: int, share: Callable[[], Fraction]) -> None:
        self._rate, self._share = rate, share
        self._lock = threading.Lock()
        self._next_at = 0.0

    def wait(self) -> None:
        """Until a call may be made."""
        while not (allowed := self._rate * self._share()):
            time.sleep(_NO_SHARE_SECONDS)
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next_at)
            self._next_at = at + float(1 / allowed)
        time.sleep(at - now)
