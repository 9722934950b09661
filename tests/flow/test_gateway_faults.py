"""A 202 means kept: broker and gateway killed and frozen at random while batches come in, every receipt is in the log."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from deploy.local.kafka import KafkaBroker
from deploy.local.process import ManagedProcess
from tests.flow.test_gateway import ADMIN, EVENT, EVENTS, Stack
from tests.waiting import until

SEED = 20260301
PRODUCERS = 4
EVENTS_PER_BATCH = 30


class Producer(threading.Thread):
    """Posts batches with ids, each until it is answered 202; receipts: name of a batch → the receipt's ranges."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__(daemon=True)
        self.receipts: dict[str, list[dict[str, int]]] = {}
        self.statuses: set[int] = set()
        self.slowest = 0.0
        self.stopping = threading.Event()
        self._number = number
        self._address = address

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        with httpx.Client(base_url=self._address, headers=headers, timeout=15, trust_env=False) as http:
            while not self.stopping.is_set():
                name = f"{self._number}-{len(self.receipts)}"
                events = [{**EVENT, "event_id": f"{name}-{index}"} for index in range(EVENTS_PER_BATCH)]
                while (receipt := self._post(http, events)) is None:
                    self.stopping.wait(0.05)
                self.receipts[name] = receipt

    def _post(self, http: httpx.Client, events: list[dict[str, Any]]) -> list[dict[str, int]] | None:
        began = time.monotonic()
        try:
            answer = http.post(EVENTS, json={"events": events})
        except httpx.HTTPError:
            return None
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.statuses.add(answer.status_code)
        return answer.json()["receipt"] if answer.status_code == 202 else None


def test_every_receipt_is_in_the_log(kafka_factory: Callable[[], KafkaBroker], tmp_path: Path) -> None:
    broker, rnd = kafka_factory(), random.Random(SEED)
    broker.start()
    stack = Stack(broker, "kept.", tmp_path)
    producers = [Producer(stack.gateway.address, number) for number in range(PRODUCERS)]

    def answered() -> int:
        return sum(len(producer.receipts) for producer in producers)

    def goes_on() -> None:
        before = answered()
        until(lambda: answered() > before + PRODUCERS, 60)

    def frozen(process: ManagedProcess) -> None:
        process.pause()
        time.sleep(rnd.uniform(1, 3))  # for so long it is frozen
        process.resume()

    try:
        for producer in producers:
            producer.start()
        for harm in ("kill broker", "freeze broker", "kill gateway", "kill broker", "freeze gateway", "stop gateway"):
            goes_on()
            time.sleep(rnd.uniform(0, 0.5))  # a moment that has nothing to do with what is being sent
            match harm:
                case "kill broker":
                    broker.kill()
                    broker.start()
                case "freeze broker":
                    frozen(broker)
                case "freeze gateway":
                    frozen(stack.gateway)
                case "kill gateway":
                    stack.gateway.kill()
                    stack.gateway.start()
                case _:
                    assert stack.gateway.stop() == 0
                    stack.gateway.start()
        goes_on()
        for producer in producers:
            producer.stopping.set()
        for producer in producers:
            producer.join(60)
        log = stack.log()
        for producer in producers:
            assert producer.statuses <= {202, 503}
            assert producer.slowest < 12
            for name, receipt in producer.receipts.items():
                there = [
                    identity
                    for part in receipt
                    for offset in range(part["first_offset"], part["last_offset"] + 1)
                    for identity in log[part["partition"], offset].identity
                ]
                assert {f"c:{name}-{index}" for index in range(EVENTS_PER_BATCH)} <= set(there), name
    finally:
        for producer in producers:
            producer.stopping.set()
        stack.close()
