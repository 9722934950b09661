"""Where the local Kafka comes from."""

from pathlib import Path

import pytest

from deploy.local.docker import kafka_command, kafka_name
from deploy.local.stack import choose_kafka


@pytest.mark.parametrize(("given", "commands", "is_root", "way"), [
    (True,  "java mvn docker apt-get", True,  "given"),
    (False, "java mvn docker apt-get", True,  "maven"),
    (False, "java docker apt-get",     True,  "docker"),
    (False, "mvn docker",              False, "docker"),
    (False, "apt-get",                 True,  "apt"),
    (False, "java apt-get",            True,  "apt"),
    (False, "apt-get",                 False, None),
    (False, "",                        True,  None),
])  # fmt: skip
def test_the_order_of_choice(given: bool, commands: str, is_root: bool, way: str | None) -> None:
    assert choose_kafka(given, commands.split().__contains__, is_root) == way


def test_each_stack_has_its_own_container(tmp_path: Path) -> None:
    assert kafka_name(tmp_path / "a") != kafka_name(tmp_path / "b")
    command = kafka_command(tmp_path / "a", 19092)
    assert command[-1].startswith("apache/kafka:")
    assert "127.0.0.1:19092:19092" in command
    assert "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://127.0.0.1:19092" in command
