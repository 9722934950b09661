"""`usage-billing up`, `status` and `down` as their users run them: two stacks side by side, one of them ill-treated."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.local import stack as local
from deploy.local.process import HOST, answers, free_ports, identity
from schemas.settings import Settings
from tests.waiting import until
from warehouse.client import connect

PORTS = (
    "USAGE_LOCAL_KAFKA_PORT",
    "USAGE_LOCAL_KAFKA_CONTROLLER_PORT",
    "USAGE_LOCAL_CLICKHOUSE_PORT",
    "USAGE_LOCAL_CLICKHOUSE_NATIVE_PORT",
    "USAGE_LOCAL_STRIPE_PORT",
    "USAGE_HTTP_PORT",
    "USAGE_AGGREGATOR_METRICS_PORT",
    "USAGE_SINK_METRICS_PORT",
    "USAGE_BILLING_METRICS_PORT",
)
PARTS = ["kafka", "clickhouse", "stripe", "aggregator", "sink", "billing", "serve"]
EVENT = {"customer_id": "cus_1", "event_name": "request", "timestamp": "2026-03-30T12:00:00Z", "value": 1}

pytestmark = pytest.mark.timeout(600)


class Stack:
    """A stack of its own: directory, ports, and the commands on it."""

    def __init__(self, directory: Path) -> None:
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        jars = Path(os.environ.get("USAGE_LOCAL_DIR", ".local")).absolute() / "jars"
        directory.mkdir()
        self._directory = directory
        if jars.is_dir():  # fetched once for all
            (directory / "jars").symlink_to(jars)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("USAGE_", "STRIPE_"))}
        self._env = {**inherited, "USAGE_LOCAL_DIR": str(directory), "NO_COLOR": "1", "COLUMNS": "200"}
        self._env |= {name: str(port) for name, port in self.ports.items()}
        self.address = f"http://{HOST}:{self.ports['USAGE_HTTP_PORT']}"

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "usage_billing.cli", *arguments]
        return subprocess.run(
            command, env={**self._env, **env}, capture_output=True, text=True, timeout=300, check=False
        )

    def up(self) -> str:
        """What it prints; fails with what it complains of."""
        done = self.run("up")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in json.loads(self.run("status", "--json").stdout)}

    def state(self) -> dict[str, Any]:
        """What the supervisor keeps: cheaper than `status`, to be asked often."""
        return json.loads((self._directory / "run" / "state.json").read_bytes())

    def pids(self) -> dict[str, int | None]:
        return {part["name"]: part["pid"] for part in self.state()["parts"]}

    def ready(self) -> bool:
        """Whether every part answers as it should."""
        names = [name.removeprefix("USAGE_").lower() for name in self.ports]
        settings = Settings(local_dir=self._directory, **dict(zip(names, self.ports.values(), strict=True)))  # pyright: ignore[reportArgumentType]
        return {part.state for part in local.status(settings)} == {"ready"}

    def clickhouse_dsn(self, database: str) -> str:
        """With the password that the stack has made."""
        password = (self._directory / "clickhouse" / "password").read_text()
        return f"http://usage:{password}@{HOST}:{self.ports['USAGE_LOCAL_CLICKHOUSE_PORT']}/{database}"

    def post(self, key: str, **more: object) -> httpx.Response:
        return httpx.post(
            f"{self.address}/api/v1/usage/events",
            json={"events": [EVENT | more]},
            headers={"Authorization": f"Bearer {key}"},
            timeout=15,
            trust_env=False,
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("stack") / "local")
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """The admin key that the first `up` prints."""
    found = re.search(r"ubk_[\w-]{43}", stack.up())
    assert found is not None
    return found.group()


def test_everything_is_ready_after_up(stack: Stack, key: str) -> None:
    status = stack.status()
    assert list(status) == PARTS
    assert {row["state"] for row in status.values()} == {"ready"}
    assert all(identity(row["pid"]) is not None for row in status.values())
    assert status["sink"]["lag"] == 0
    assert status["serve"]["address"] == stack.address
    assert stack.post(key).json()["accepted"] == 1


def test_a_second_up_changes_nothing_and_keeps_the_key_to_itself(stack: Stack, key: str) -> None:
    before = stack.pids()
    printed = stack.up()
    assert stack.address in printed
    assert "ubk_" not in printed
    assert stack.pids() == before


def test_a_second_stack_runs_beside_it(stack: Stack, key: str, tmp_path: Path) -> None:
    other = Stack(tmp_path / "other")
    try:
        other_key = re.search(r"ubk_[\w-]{43}", other.up())
        assert other_key is not None
        assert other.post(other_key.group()).status_code == 202
        assert other.post(key).status_code == 401
    finally:
        assert other.run("down").returncode == 0
    assert not any(answers(port) for port in other.ports.values())
    assert stack.post(key).status_code == 202


def test_a_taken_port_is_named(key: str, stack: Stack, tmp_path: Path) -> None:
    other = Stack(tmp_path / "other")
    done = other.run("up", USAGE_HTTP_PORT=str(stack.ports["USAGE_HTTP_PORT"]))
    assert done.returncode == 1
    assert "serve is to listen on" in done.stderr
    assert not answers(other.ports["USAGE_LOCAL_KAFKA_PORT"])


def test_an_analyst_is_made_and_removed(stack: Stack, key: str) -> None:
    def asked(password: str, query: str) -> httpx.Response:
        address = f"http://{HOST}:{stack.ports['USAGE_LOCAL_CLICKHOUSE_PORT']}"
        return httpx.post(address, content=query, auth=("anna", password), timeout=15, trust_env=False)

    assert stack.run("analysts", "create", "anna", "--organization", "nobody").returncode == 2
    assert stack.run("analysts", "create", "Anna").returncode == 2
    assert stack.run("analysts", "create", "usage").returncode == 2
    passwords: list[str] = []
    for replace in ([], ["--replace"]):
        done = stack.run("analysts", "create", "anna", "--organization", "default", *replace)
        assert done.returncode == 0, done.stderr
        printed = re.search(r"password  (\S+)", done.stdout)
        assert printed is not None
        passwords.append(printed[1])
    answer = asked(passwords[1], "SELECT uniqExact(organization_id) FROM usage")
    assert answer.text == "1\n", answer.text
    assert asked(passwords[0], "SELECT 1").status_code >= 400
    assert stack.run("analysts", "create", "anna").returncode == 2, "there is one of this name"
    listed = stack.run("analysts", "list").stdout
    assert "anna" in listed
    assert "default" in listed
    until(stack.ready, 30)
    assert stack.post(key).status_code == 202
    assert stack.run("analysts", "remove", "anna").returncode == 0
    assert stack.run("analysts", "remove", "anna").returncode == 2
    assert asked(passwords[1], "SELECT 1").status_code >= 400
    sql = stack.run("analysts", "create", "anna", USAGE_CLICKHOUSE_DSN="http://billing:x@127.0.0.1:9/other")
    assert sql.returncode == 0
    assert sql.stdout.startswith("CREATE SETTINGS PROFILE")
    assert "GRANT SELECT ON other.usage TO anna;" in sql.stdout
    assert "password" in sql.stderr
    until(stack.ready, 30)


def test_what_dies_is_started_again_within_two_seconds(stack: Stack, key: str) -> None:
    before = stack.pids()
    for name, pid in before.items():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert until(lambda name=name, pid=pid: stack.pids()[name] not in (None, pid)) < 2.0
    until(stack.ready, 120, every=0.2)
    assert not set(before.values()) & set(stack.pids().values())
    assert stack.post(key).status_code == 202


def test_parts_with_a_given_address_are_not_started(stack: Stack, key: str, tmp_path: Path) -> None:
    """The second stack uses the first one's Kafka (with topics of its own), ClickHouse and Stripe stand-in."""
    other = Stack(tmp_path / "other")
    given = {
        "USAGE_KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{stack.ports['USAGE_LOCAL_KAFKA_PORT']}",
        "USAGE_CLICKHOUSE_DSN": stack.clickhouse_dsn("other"),
        "STRIPE_API_BASE": f"http://{HOST}:{stack.ports['USAGE_LOCAL_STRIPE_PORT']}",
        "USAGE_TOPIC_PREFIX": "other.",
        "USAGE_ADMIN_KEY": "ubk_of_the_environment_itself",
    }
    try:
        done = other.run("up", **given)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ubk_" not in done.stdout
        rows = json.loads(other.run("status", "--json", **given).stdout)
        assert {row["name"]: row["state"] for row in rows} == dict.fromkeys(PARTS[:3], "given") | dict.fromkeys(
            PARTS[3:], "ready"
        )
        assert other.post("ubk_of_the_environment_itself").status_code == 202
    finally:
        assert other.run("down", **given).returncode == 0
    assert stack.post(key).status_code == 202


def test_up_works_after_a_crash_of_everything_and_down_leaves_nothing(stack: Stack, key: str) -> None:
    assert stack.post(key, customer_id="cus_kept", event_id="kept").status_code == 202
    supervisor: int = stack.state()["pid"]
    for pid in (supervisor, *stack.pids().values()):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(answers(port) for port in stack.ports.values()))
    assert {row["state"] for row in stack.status().values()} == {"stopped"}

    assert "ubk_" not in stack.up()
    count = "SELECT count() FROM usage WHERE customer_id = 'cus_kept'"
    with connect(Settings(clickhouse_dsn=stack.clickhouse_dsn("usage"))) as client:
        until(lambda: client.query(count).result_rows == [(1,)], 60)
    assert stack.post(key).status_code == 202

    pids = [pid for pid in stack.pids().values() if pid is not None]
    assert len(pids) == len(PARTS)
    assert stack.run("down").returncode == 0
    assert [identity(pid) for pid in pids] == [None] * len(pids)
    assert not any(answers(port) for port in stack.ports.values())
    assert stack.run("down").returncode == 0  # nothing to do
