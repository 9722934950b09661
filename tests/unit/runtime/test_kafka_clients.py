"""Confluent clients are created in one file, so that what was learned about librdkafka is written once."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
    "wheel"
]["packages"]
CLIENTS = {"Consumer", "DeserializingConsumer", "Producer", "SerializingProducer", "AdminClient"}


def created(path: Path) -> Iterator[str]:
    """Names of the clients that a file creates, under whatever name it imports them."""
    tree = ast.parse(path.read_text())
    named = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "confluent_kafka"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if (name := named.get(called, called)) in CLIENTS:
                yield name


def test_one_file_creates_kafka_clients() -> None:
    found = {
        str(path.relative_to(ROOT)): sorted(set(names))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if (names := list(created(path)))
    }
    assert found == {"runtime/kafka/clients.py": ["AdminClient", "Consumer", "Producer"]}
