"""Docker → the official Kafka image as one process in the foreground, for machines without Java."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

KAFKA_IMAGE = "apache/kafka:4.3.1"


def kafka_environment(port: int) -> Mapping[str, str]:
    """The image's configuration: one node, reached from this machine at 127.0.0.1:port."""
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": f"PLAINTEXT://:{port},CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "PLAINTEXT",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LOG_DIRS": "/var/lib/kafka/data",
        "KAFKA_CONTROLLED_SHUTDOWN_ENABLE": "false",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        # As in kafka.py: back soon after kill -9.
        "KAFKA_BROKER_SESSION_TIMEOUT_MS": "2000",
        "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "300",
    }


def kafka_name(data_dir: Path) -> str:
    """Name of container and volume: one per stack."""
    return f"usage-kafka-{hashlib.sha256(str(data_dir.absolute()).encode()).hexdigest()[:12]}"


def kafka_command(data_dir: Path, port: int, image: str = KAFKA_IMAGE) -> list[str]:
    """Run the broker in the foreground; SIGTERM ends it, its volume stays. data_dir: only names the stack."""
    name = kafka_name(data_dir)
    run = [
        "docker",
        "run",
        "--rm",
        "--init",
        "--name",
        name,
        "-p",
        f"127.0.0.1:{port}:{port}",
        "-v",
        f"{name}:/var/lib/kafka/data",
    ]
    for key, value in kafka_environment(port).items():
        run += ["-e", f"{key}={value}"]
    # A killed `docker run` leaves its container behind, and the name taken.
    return ["sh", "-c", 'docker rm -f "$0" >/dev/null 2>&1; exec "$@"', name, *run, image]
