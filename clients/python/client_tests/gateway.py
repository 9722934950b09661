"""A gateway in memory: counts each id once, and misbehaves as it is asked."""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

Behaviour = Callable[[list[dict[str, Any]]], httpx.Response | None]


class Gateway(httpx.BaseTransport):
    """behaviour: called with each request's events; an answer of its own, or None to accept. It may raise."""

    def __init__(self, behaviour: Behaviour = lambda events: None) -> None:
        self.behaviour = behaviour
        self.requests: list[list[dict[str, Any]]] = []
        self.counted: dict[str, dict[str, Any]] = {}
        self.copies: Counter[str] = Counter()
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["content-encoding"] == "gzip"
        assert request.headers["authorization"] == "Bearer secret"
        events = json.loads(gzip.decompress(request.content))["events"]
        with self._lock:
            self.requests.append(events)
            number = len(self.requests)
        answer = self.behaviour(events)
        if answer is not None:
            return answer
        self.accept(events)
        return httpx.Response(202, json={"accepted": len(events), "unmatched": 0, "receipt": [], "number": number})

    def accept(self, events: list[dict[str, Any]]) -> None:
        with self._lock:
            for event in events:
                self.counted.setdefault(event["event_id"], event)
                self.copies[event["event_id"]] += 1


def refusing(code: str, *indexes: int) -> httpx.Response:
    errors = [{"index": index, "field": "value", "code": code, "message": "no"} for index in indexes]
    return httpx.Response(422, json={"title": "Invalid", "status": 422, "errors": errors})
