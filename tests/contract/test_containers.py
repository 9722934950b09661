"""The same contract on a Kafka in a container: what a user with Docker, or a cluster of their own, runs.

Needs a container engine. Where none answers the tests are skipped, but not where USAGE_TEST_CONTAINERS is `required`
(.ci/run sets it, after it has started one). USAGE_TEST_KAFKA_IMAGE names another image than the official one.
"""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator

import docker
import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # pyright: ignore[reportPrivateImportUsage]
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

from deploy.local.docker import KAFKA_IMAGE, kafka_environment
from deploy.local.process import free_ports
from deploy.local.supervisor import probe
from tests.waiting import until


def _unavailable(reason: str) -> None:
    if os.environ.get("USAGE_TEST_CONTAINERS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def _get_image(image: str) -> None:
    with warnings.catch_warnings():
        # docker-py leaves the socket of a connection open that could not be made.
        warnings.simplefilter("ignore", ResourceWarning)
        reason = None
        try:
            with contextlib.closing(docker.DockerClient.from_env(timeout=120)) as engine:
                if not engine.images.list(image):
                    engine.images.pull(image)
        except (DockerException, OSError) as error:
            reason = f"no container engine with the image {image}: {error}"
        gc.collect()
    if reason is not None:
        _unavailable(reason)


@pytest.fixture(scope="module")
def container() -> Iterator[tuple[DockerContainer, str]]:
    """A running broker in a container, and its bootstrap servers."""
    image = os.environ.get("USAGE_TEST_KAFKA_IMAGE", KAFKA_IMAGE)
    _get_image(image)
    (port,) = free_ports(1)
    running = DockerContainer(image)
    running.ports[f"{port}/tcp"] = ("127.0.0.1", port)  # type: ignore[assignment]  # with_bind_ports takes no address
    for name, value in kafka_environment(port).items():
        running = running.with_env(name, value)
    with running:
        servers = f"127.0.0.1:{port}"
        until(lambda: probe(f"kafka://{servers}") is None, 60)
        yield running, servers


def test_messages_survive_a_killed_container(container: tuple[DockerContainer, str], unique: str) -> None:
    running, servers = container
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    admin.create_topics([NewTopic(unique, 3, 1)])[unique].result(15)
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "enable.idempotence": True, "log_level": 0})
    producer.produce(unique, b"before", partition=1)
    assert producer.flush(15) == 0

    running.get_wrapped_container().kill()
    running.get_wrapped_container().start()
    producer.produce(unique, b"after", partition=1)
    assert producer.flush(60) == 0

    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": unique, "auto.offset.reset": "earliest", "log_level": 0}
    )
    consumer.subscribe([unique])
    try:
        read: list[bytes | None] = []

        def poll() -> bool:
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                read.append(message.value())
            return len(read) == 2

        until(poll, 30)
        assert read == [b"before", b"after"]
    finally:
        consumer.close()
