"""The wall clock, read at the edges only: pure functions take `now`."""

from __future__ import annotations

import time


def now_us() -> int:
    """µs since 1970, UTC."""
    return time.time_ns() // 1000
