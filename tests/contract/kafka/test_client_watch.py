"""What a running client never gets over ends its process: brokers forgotten, and a topic made again.

librdkafka forgets by a race of a few milliseconds, which no test can bring about at will; what such a client's
statistics say was taken from one that had (docs/decisions/chaos.md).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from confluent_kafka import Producer

from deploy.local.kafka import KafkaBroker
from runtime.kafka.admin import admin_client, create_topics
from runtime.kafka.client_watch import EXIT_CODE, watched
from schemas.settings import Settings
from schemas.topics import USAGE_TOTALS, topic_name
from tests.services import Service, environment
from tests.waiting import until

FORGOTTEN = json.dumps({"name": "rdkafka#producer-1", "brokers": {}, "topics": {}})
LOST = f"""
import sys, time
from runtime.kafka.client_watch import end_process_of_lost_clients, watched
end_process_of_lost_clients()
tell = watched({{"bootstrap.servers": sys.argv[1]}})["stats_cb"]
for _ in range(int(sys.argv[2])):
    tell({FORGOTTEN!r})
print("told", flush=True)
time.sleep(float(sys.argv[3]))
"""


@contextlib.contextmanager
def _told(broker: KafkaBroker, times: int, seconds: float) -> Generator[subprocess.Popen[str]]:
    """A process that was told so many times that a client has no brokers, and would end by itself after these seconds."""
    arguments = [sys.executable, "-c", LOST, broker.bootstrap_servers, str(times), str(seconds)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("told" in line for line in process.stdout)
        try:
            yield process
        finally:
            process.kill()


def test_the_process_ends_when_the_cluster_is_there_again(kafka_factory: Callable[[], KafkaBroker]) -> None:
    broker = kafka_factory()
    with _told(broker, times=2, seconds=120) as process:
        broker.start()  # takes seconds, in which the process goes on: it could not start again either
        assert process.wait(30) == EXIT_CODE


def test_one_look_without_brokers_ends_nothing(kafka: KafkaBroker) -> None:
    with _told(kafka, times=1, seconds=2) as process:
        assert process.wait(30) == 0


def test_a_client_whose_brokers_are_away_knows_them(kafka_factory: Callable[[], KafkaBroker]) -> None:
    broker = kafka_factory()
    broker.start()
    properties = watched({"bootstrap.servers": broker.bootstrap_servers, "log_level": "2"})
    tell: Callable[[str], None] = properties["stats_cb"]
    known: list[dict[str, dict[str, object]]] = []

    def keep(text: str) -> None:
        tell(text)
        known.append(json.loads(text)["brokers"])

    client = Producer({**properties, "stats_cb": keep, "statistics.interval.ms": 50})
    client.list_topics(timeout=10)
    broker.stop()

    def told_of_its_end() -> bool:
        client.poll(0.1)
        return any(all(each["state"] != "UP" for each in brokers.values()) for brokers in known[-1:])

    until(told_of_its_end)
    seen = len(known)
    until(lambda: client.poll(0.1) or len(known) > seen + 20)
    assert all(known)


def test_a_service_ends_when_a_topic_was_made_again(kafka: KafkaBroker, topic_prefix: str, tmp_path: Path) -> None:
    settings = Settings(kafka_bootstrap_servers=kafka.bootstrap_servers, topic_prefix=topic_prefix, event_partitions=2)
    create_topics(settings)
    service = Service("gateway", environment(settings), tmp_path).start()
    try:
        until(lambda: "topics_watched" in service.log_path.read_text())
        admin, topic = admin_client(settings), topic_name(settings, USAGE_TOTALS)
        admin.delete_topics([topic])[topic].result(15)
        until(lambda: topic not in admin.list_topics(timeout=10).topics)
        assert service.running
        create_topics(settings)
        until(lambda: not service.running, 30)
    finally:
        service.kill()
    assert "was recreated" in service.log_path.read_text()
