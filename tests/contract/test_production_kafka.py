"""The brokers of deploy/production, with the properties and certificates that its script writes: three real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]
from dotenv import dotenv_values

from deploy.local.kafka import resolve_jars
from deploy.local.process import ManagedProcess, free_ports
from runtime.kafka.durability import topic_durability
from schemas.settings import Settings
from schemas.topics import topic_specs
from tests.waiting import until

pytestmark = pytest.mark.timeout(400)
PRODUCTION = Path(__file__).parents[2] / "deploy" / "production"
CLUSTER_ID = "dXNhZ2UtYmlsbGluZy0xMQ"


class Brokers:
    """Each on ports of this machine, under the name localhost, which their certificates have too."""

    def __init__(self, directory: Path) -> None:
        self.secrets = directory / "secrets"
        subprocess.run([PRODUCTION / "make-secrets.sh", self.secrets], check=True, capture_output=True)
        ports = free_ports(9)
        self.clients = {node: ports[node - 1] for node in (1, 2, 3)}
        self.processes: dict[int, ManagedProcess] = {}
        others = {node: (ports[2 + node], ports[5 + node]) for node in (1, 2, 3)}
        for node in (1, 2, 3):
            text = (self.secrets / f"kafka-{node}.properties").read_text()
            for each, (_, controller) in others.items():
                text = text.replace(f"kafka-{each}:9094", f"localhost:{controller}")
            text = text.replace(f"kafka-{node}:", "localhost:").replace(
                "/run/secrets/kafka.pem", str(self.secrets / f"kafka-{node}.pem")
            )
            text = text.replace("/run/secrets/ca.pem", str(self.secrets / "ca.pem"))
            text = text.replace("/var/lib/kafka/data", str(directory / f"data-{node}"))
            for before, port in zip((9092, 9093, 9094), (self.clients[node], *others[node]), strict=True):
                text = re.sub(rf":{before}\b", f":{port}", text)
            (directory / f"{node}.properties").write_text(text)
            self.processes[node] = ManagedProcess(f"kafka-{node}", directory / f"kafka-{node}.log")
        self._directory = directory

    def start(self) -> None:
        java = [str(shutil.which("java")), "-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", f"{resolve_jars()}/*"]
        for node, process in self.processes.items():
            properties = str(self._directory / f"{node}.properties")
            tool = [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", properties]
            subprocess.run(tool, check=True, capture_output=True)
            process.spawn([*java, "kafka.Kafka", properties])

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"localhost:{port}" for port in self.clients.values())


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    made = Brokers(tmp_path_factory.mktemp("brokers"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def env(brokers: Brokers) -> dict[str, str]:
    """A service's environment as compose.yaml and services.env give it, but for addresses and paths."""
    compose: dict[str, Any] = yaml.safe_load((PRODUCTION / "compose.yaml").read_text())
    given = {name: str(value) for name, value in compose["services"]["sink"]["environment"].items()}
    secret = {name: value or "" for name, value in dotenv_values(brokers.secrets / "services.env").items()}
    return {
        **given,
        **secret,
        "USAGE_KAFKA_BOOTSTRAP_SERVERS": brokers.bootstrap_servers,
        "USAGE_KAFKA_SSL_CA_LOCATION": str(brokers.secrets / "ca.pem"),
        "STRIPE_API_KEY": "sk_live_x",
        "STRIPE_WEBHOOK_SECRET": "whsec_x",
    }


def answers(properties: dict[str, Any]) -> int:
    """How many brokers a client sees; 0: none lets it in."""
    try:
        return len(AdminClient({**properties, "log_level": 0}).list_topics(timeout=5).brokers)
    except KafkaException:
        return 0


def test_topics_are_on_three_brokers_and_one_may_be_lost(
    brokers: Brokers, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    until(lambda: answers(settings.kafka_properties) == 3, 120, every=1)
    program = str(Path(sys.executable).with_name("usage-billing"))
    done = subprocess.run(
        [program, "topics", "create"], env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = topic_durability(settings)
    assert {each.name for each in found} == {spec.name for spec in topic_specs(settings)}
    assert [(each.name, each.weaknesses) for each in found if each.weaknesses] == []

    # Neither without TLS, nor with another password, nor with another authority.
    wrong: list[dict[str, str]] = [
        {"security.protocol": "PLAINTEXT"},
        {"sasl.password": "guessed"},
        {"ssl.ca.location": "/etc/ssl/certs/ca-certificates.crt"},
    ]
    assert [answers({**settings.kafka_properties, **each}) for each in wrong] == [0, 0, 0]

    brokers.processes[2].kill()
    producer = Producer({**settings.kafka_properties, "acks": "all", "log_level": 0})
    failed: list[object] = []
    for partition in range(settings.event_partitions):
        producer.produce(
            "usage.events",
            b"x",
            partition=partition,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
    assert producer.flush(60) == 0
    assert failed == []
