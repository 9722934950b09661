"""SIGTERM, SIGINT → an event to stop by."""

from __future__ import annotations

import signal
import threading


def stop_on_signals() -> threading.Event:
    """Set on the first SIGTERM or SIGINT. Only from the main thread."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    return stopping
