"""From the post of an event to its number, its alert and its webhook, while other events flow.

`python -m tests.benchmarks.bench_visible [--rates 0,10000,…] [--probes N]`: broker, engine, `serve`, aggregator and sink
share the machine with the load, which is its own process. A probe is a new customer's first event; its number is seen
as a page sees it, by the stream of server-sent events.
"""

import argparse
import http.client
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from catalog.store import CatalogStore
from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from runtime.kafka.admin import create_topics
from schemas.settings import Settings
from tests.known import make_known
from tests.receiver import Receiver
from tests.services import Service, environment
from tests.waiting import until
from warehouse.migrate import migrate

KEY = "ubk_admin_of_the_benchmark"
EVENTS_PER_REQUEST = 1000
CUSTOMERS = 1000
LOAD_CONNECTIONS = 4
PROBE_SECONDS_MAX = 20.0
LOAD_SECONDS_BEFORE = 3  # as many seconds' events of the asked rate go before the first probe
LOAD_SECONDS_MAX = 120.0
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def load(port: int, per_second: int, stopping: Any, sent: Any) -> None:
    """Post batches at that many events a second until it is told to stop; what can't be sent in time is sent later."""

    def post(place: int) -> None:
        events = [
            {
                "customer_id": f"load_{(place * EVENTS_PER_REQUEST + n) % CUSTOMERS}", "event_name": "load", "value": 1,
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            for n in range(EVENTS_PER_REQUEST)
        ]  # fmt: skip
        body, every = json.dumps({"events": events}), EVENTS_PER_REQUEST * LOAD_CONNECTIONS / per_second
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        following = time.monotonic() + every * place / LOAD_CONNECTIONS
        while not stopping.is_set():
            if (wait := following - time.monotonic()) > 0:
                time.sleep(wait)
            following += every
            connection.request("POST", "/api/v1/usage/events", body, HEADERS)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 202:
                with sent.get_lock():
                    sent.value += EVENTS_PER_REQUEST

    threads = [threading.Thread(target=post, args=(n,), daemon=True) for n in range(LOAD_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Seen:
    """customer → when its number, alert and webhook came, monotonic seconds."""

    def __init__(self, receiver: Receiver) -> None:
        self.totals: dict[str, float] = {}
        self.alerts: dict[str, float] = {}
        self._receiver = receiver

    @property
    def webhooks(self) -> dict[str, float]:
        return {json.loads(each.body)["data"]["customer_id"]: each.at for each in self._receiver.got}

    def follow(self, address: str, ready: threading.Event, stopping: threading.Event) -> None:
        name = ""
        with (
            httpx.Client(timeout=60) as client,
            client.stream("GET", f"{address}/api/v1/stream", headers=HEADERS) as answer,
        ):
            for line in answer.iter_lines():
                if stopping.is_set():
                    return
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    ready.set()
                    now = time.monotonic()
                    into = {"totals": self.totals, "alerts": self.alerts}.get(name)
                    if into is not None:
                        for row in json.loads(line.removeprefix("data: ")):
                            into.setdefault(row["customer_id"], now)


def probe(client: httpx.Client, seen: Seen, customer: str) -> tuple[float, float, float]:
    """Seconds from the post to number, alert, webhook."""
    event = {"customer_id": customer, "event_name": "probe", "value": 5}
    started = time.monotonic()
    event["timestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert client.post("/api/v1/usage/events", json={"events": [event]}).status_code == 202
    until(lambda: customer in seen.totals and customer in seen.alerts, PROBE_SECONDS_MAX, every=0.005)
    until(lambda: customer in seen.webhooks, PROBE_SECONDS_MAX, every=0.005)
    return tuple(  # pyright: ignore[reportReturnType]
        each[customer] - started for each in (seen.totals, seen.alerts, seen.webhooks)
    )


def bench(rates: list[int], probes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        port, controller_port = free_ports(2)
        broker = KafkaBroker(directory / "kafka", port, controller_port, directory / "kafka.log")
        engine = ClickHouseLocal(directory / "clickhouse", free_ports(1)[0], directory / "clickhouse.log")
        broker.start()
        engine.start()
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": broker.bootstrap_servers, "clickhouse_dsn": engine.dsn("visible"),
            "admin_key": KEY, "webhook_private_targets": True,
        }  # fmt: skip
        settings = Settings(**values)
        create_topics(settings)
        migrate(settings)
        services = [Service(name, environment(settings), directory) for name in ("serve", "aggregator", "sink")]
        receiver = Receiver()
        seen, ready, stopping = Seen(receiver), threading.Event(), threading.Event()
        try:
            for service in services:
                service.start()
            serve = services[0]
            with httpx.Client(base_url=serve.address, headers=HEADERS, timeout=30) as client:
                made = {"name": "m", "unit": "u", "aggregation": "sum"}
                ids = [
                    client.post("/api/v1/meters", json={**made, "event_name": each}).json()["id"]
                    for each in ("load", "probe")
                ]
                rule = {"meter_id": ids[1], "kind": "quantity", "threshold": "1"}
                assert client.post("/api/v1/alert-rules", json=rule).status_code == 201
                assert client.post("/api/v1/webhook-endpoints", json={"url": receiver.url("/")}).status_code == 201
                follower = threading.Thread(target=seen.follow, args=(serve.address, ready, stopping), daemon=True)
                follower.start()
                assert ready.wait(20)
                probes_of = (f"probe_{rate}_{n}" for rate in rates for n in range(probes))
                with CatalogStore(settings) as catalog:
                    make_known(catalog, ["warm", *(f"load_{n}" for n in range(CUSTOMERS)), *probes_of])
                probe(client, seen, "warm")
                for rate in rates:
                    _at_rate(client, seen, serve.port, rate, probes)
                stopping.set()
        finally:
            for service in services:
                service.stop()
            receiver.end()
            engine.stop()
            broker.stop()


def _at_rate(client: httpx.Client, seen: Seen, port: int, rate: int, probes: int) -> None:
    context = multiprocessing.get_context("spawn")
    ending, sent = context.Event(), context.Value("q", 0)
    loading = context.Process(target=load, args=(port, rate, ending, sent), daemon=True)
    if rate:
        loading.start()
        until(lambda: sent.value >= LOAD_SECONDS_BEFORE * rate, LOAD_SECONDS_MAX)  # it flows, and all stages are warm
    before, started = sent.value, time.monotonic()
    found = [probe(client, seen, f"probe_{rate}_{n}") for n in range(probes)]
    achieved = (sent.value - before) / (time.monotonic() - started)
    if rate:
        ending.set()
        loading.join(30)
    columns = [sorted(column) for column in zip(*found, strict=True)]
    shown = "   ".join(
        f"{what} p50 {column[len(column) // 2]:.2f} s p95 {column[int(len(column) * 0.95)]:.2f} s"
        for what, column in zip(("number", "alert", "webhook"), columns, strict=True)
    )
    print(f"{rate:>7,} events/s asked, {achieved:>7,.0f} flowing:   {shown}", flush=True)
    until(lambda: not _behind(client), LOAD_SECONDS_MAX, every=0.5)  # what is behind is not the next rate's


def _behind(client: httpx.Client) -> int:
    """Messages that are not counted yet."""
    return client.get("/api/v1/usage/live", params={"customer_id": "warm"}).json()["lag"]["messages"]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", default="0,10000,20000,30000,50000")
    parser.add_argument("--probes", type=int, default=40)
    given = parser.parse_args()
    bench([int(each) for each in given.rates.split(",")], given.probes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
