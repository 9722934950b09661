"""Disks that are really full: the sink waits, the gateway says no in time; with room again nothing is lost or doubled."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from tests.flow.sinking import SinkWorld
from tests.flow.test_gateway import EVENT, EVENTS, Stack
from tests.flow.test_sink_faults import Truth, reasons
from tests.waiting import until

DISK_MIB = 160
_SPARE = 64 * 1024  # bytes left on a full disk


class Disk:
    """A file system of its own, of DISK_MIB: tmpfs. fill() leaves no room, free() gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        with self._filler.open("ab") as file:
            while (room := self._room()) > _SPARE:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room - _SPARE // 2)

    def free(self) -> None:
        self._filler.unlink()

    def _room(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system to be filled")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", path], check=True)
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


def test_the_sink_waits_for_room_on_the_engines_disk(
    kafka: KafkaBroker, disk: Disk, unique: str, tmp_path: Path
) -> None:
    engine = ClickHouseLocal(disk.path / "data", free_ports(1)[0], tmp_path / "clickhouse.log")
    engine.start()
    try:
        with SinkWorld(kafka, engine, unique, tmp_path) as world:
            truth, sink = Truth(world), world.sink().start()
            truth.send(20)
            world.settle()
            disk.fill()
            truth.send(60)
            until(lambda: "clickhouse" in reasons(sink), 40)
            assert world.committed() != world.ends()
            disk.free()
            world.settle(60)
            assert truth.holds()
            until(lambda: reasons(sink) == {}, 20)
            assert sink.stop() == 0
    finally:
        engine.kill()


def test_the_gateway_says_no_while_the_brokers_disk_is_full(disk: Disk, tmp_path: Path) -> None:
    port, controller_port = free_ports(2)
    broker = KafkaBroker(disk.path / "kafka", port, controller_port, tmp_path / "kafka.log")
    broker.start()
    stack = Stack(broker, "full.", tmp_path)
    accepted: dict[str, list[Any]] = {}

    def post(name: str) -> httpx.Response:
        big = {f"p{index}": os.urandom(100).hex() for index in range(20)}  # what can't be compressed
        events = [{**EVENT, "event_id": f"{name}-{index}", "properties": big} for index in range(200)]
        answer = stack.client.post(EVENTS, json={"events": events})
        if answer.status_code == 202:
            accepted[name] = answer.json()["receipt"]
        return answer

    try:
        assert post("before").status_code == 202
        disk.fill()
        number, answer, slowest = 0, post("full"), 0.0
        while answer.status_code == 202:
            began = time.monotonic()
            number += 1
            answer = post(f"full-{number}")
            slowest = max(slowest, time.monotonic() - began)
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        assert slowest < 10
        disk.free()
        if broker.running and not broker.ready():
            broker.kill()
        if not broker.running:
            broker.start()
        until(lambda: post("after").status_code == 202, 60, every=0.5)
        log = stack.log()
        for name, receipt in accepted.items():
            there = {
                identity
                for part in receipt
                for offset in range(part["first_offset"], part["last_offset"] + 1)
                for identity in log[part["partition"], offset].identity
            }
            assert {f"c:{name}-{index}" for index in range(200)} <= there
    finally:
        stack.close()
        broker.kill()
