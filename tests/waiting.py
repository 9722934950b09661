"""A condition → the moment when it holds: tests wait for it and never sleep for a time that is thought to be enough."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 20.0, every: float = 0.02) -> float:
    """Wait until it is true; the seconds that it took. Raises AssertionError when the time is over.

    A condition that is costly to find out is asked less often: what it waits for needs the processor.
    """
    started = asked = time.monotonic()
    while not condition():
        now = time.monotonic()
        assert now - started < seconds, f"did not come true within {seconds:g} s"
        time.sleep(max(every, now - asked))
        asked = time.monotonic()
    return time.monotonic() - started
