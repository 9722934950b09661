"""The image of deploy/Dockerfile, run as a cluster runs it: by number, with a file system that nobody may write.

Needs a container engine; see test_containers.py. USAGE_TEST_SERVICE_IMAGE names an image that is built already, on
another base than the official Python.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from pydantic import SecretStr

from deploy.local.clickhouse_http import ClickHouseLocal
from deploy.local.kafka import KafkaBroker
from deploy.local.process import free_ports
from schemas.settings import Settings
from tests.contract.containers import ROOT, service_image
from tests.services import environment
from tests.waiting import until

pytestmark = pytest.mark.timeout(400)
ADMIN = "ubk_admin_of_the_service_image"
LIBRARIES = "/srv/usage-billing/lib/python3.*/site-packages"


@pytest.fixture(scope="module")
def image() -> str:
    return service_image()


@contextlib.contextmanager
def started(
    image: str, *command: str, env: dict[str, str] | None = None, entrypoint: str | None = None
) -> Generator[Any]:
    """A container on this machine's network that may write nowhere but in /tmp, with no privilege to gain."""
    with contextlib.closing(docker.DockerClient.from_env(timeout=120)) as engine:
        container = engine.containers.run(
            image, list(command), environment=env, entrypoint=entrypoint, detach=True, network_mode="host",
            read_only=True, tmpfs={"/tmp": ""}, cap_drop=["ALL"], security_opt=["no-new-privileges"],
        )  # fmt: skip
        try:
            yield container
        finally:
            container.remove(force=True, v=True)


def output(image: str, *command: str, **more: Any) -> str:
    """What a command prints; it must end with 0."""
    with started(image, *command, **more) as container:
        code = container.wait(timeout=120)["StatusCode"]
        said = container.logs().decode()
        assert code == 0, said
        return said.strip()


def shell(image: str, script: str) -> str:
    return output(image, "-c", script, entrypoint="sh")


def test_nothing_runs_as_root_and_nobody_may_change_the_code(image: str) -> None:
    assert shell(image, "id -u; id -g") == "10001\n10001"
    mine = "find / -xdev -path /proc -prune -o -user 10001 -print 2>/dev/null; true"
    assert shell(image, mine).split() == ["/data"]
    writable = f"find {LIBRARIES} /srv/usage-billing/bin -writable ! -type l 2>/dev/null; true"
    assert shell(image, writable) == ""


def test_no_secrets_tests_or_tools_are_in_the_image(image: str) -> None:
    found = shell(image, "find / -xdev \\( -name '.env*' -o -name .git -o -name .local \\) 2>/dev/null; true")
    assert found == ""
    ours = shell(
        image,
        f"cd {LIBRARIES} && ls -d tests client_tests stripe_standin tools pytest pyright uv pip chdb 2>/dev/null; true",
    )
    assert ours == ""
    assert shell(image, "ls -A /data /build /tools /wheels 2>/dev/null; true").replace("/data:", "").strip() == ""


def test_secrets_of_the_machine_that_builds_reach_no_layer(image: str, tmp_path: Path) -> None:
    """Not even one of the stage that builds, which a cache may keep."""
    (tmp_path / ".dockerignore").write_bytes((ROOT / ".dockerignore").read_bytes())
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY . /context\n")
    for name in (".env", ".env.production", ".local/clickhouse/password", "schemas/event.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    with contextlib.closing(docker.DockerClient.from_env(timeout=120)) as engine:
        copied, _ = engine.images.build(path=str(tmp_path), rm=True)
        try:
            assert (
                shell(str(copied.id), "cd /context && find . -type f ! -name .dockerignore | sort")
                == "./Dockerfile\n./schemas/event.py"
            )
        finally:
            engine.images.remove(str(copied.id), force=True)


def test_the_bytecode_is_compiled(image: str) -> None:
    """A file system that is read-only could keep none, and each start would compile again."""
    sources = f"cd {LIBRARIES} && for d in billing_job dashboard schemas confluent_kafka pydantic; do " + (
        "find $d -name '*.py' | while read f; do "
        "ls $(dirname $f)/__pycache__/$(basename $f .py).cpython-*.pyc >/dev/null 2>&1 || echo $f; done; done"
    )
    assert shell(image, sources) == ""


def test_a_service_of_the_image_takes_and_stores_events(
    image: str, kafka: KafkaBroker, clickhouse: ClickHouseLocal, database: str, topic_prefix: str
) -> None:
    http_port, sink_port = free_ports(2)
    settings = Settings(
        kafka_bootstrap_servers=kafka.bootstrap_servers,
        clickhouse_dsn=clickhouse.dsn(database),
        topic_prefix=topic_prefix,
        event_partitions=3,
        http_port=http_port,
        sink_metrics_port=sink_port,
        admin_key=SecretStr(ADMIN),
    )
    env = environment(settings)
    assert "usage-billing" in output(image, "--help")
    output(image, "topics", "create", env=env)
    output(image, "migrate", env=env)
    with started(image, "serve", env=env) as serve, started(image, "sink", env=env) as sink:
        api = httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=30, trust_env=False)
        with api:
            for container, port in ((serve, http_port), (sink, sink_port)):
                until(lambda c=container, p=port: _answers(c, p, "/healthz") and _answers(c, p, "/readyz"), 60)
            check = serve.exec_run(["python", "-m", "deploy.ready", str(http_port)])
            assert check.exit_code == 0, check.output
            api.headers["Authorization"] = f"Bearer {ADMIN}"
            meter = {"name": "calls", "event_name": "calls", "unit": "1", "aggregation": "sum"}
            made = api.post("/api/v1/meters", json=meter)
            assert made.status_code == 201, made.text
            assert api.post("/api/v1/customers", json={"id": "c", "name": "C"}).status_code == 201
            event = {"customer_id": "c", "event_name": "calls", "timestamp": "2026-03-10T12:00:00Z", "value": "2.5"}
            assert api.post("/api/v1/usage/events", json={"events": [event]}).status_code == 202
            query = {"customer_id": "c", "meter_id": made.json()["id"], "window": "month"}
            march = {"from": "2026-03-01T00:00:00Z", "to": "2026-04-01T00:00:00Z"}

            def quantities() -> list[str]:
                return [row["quantity"] for row in api.get("/api/v1/usage", params=query | march).json()["data"]]

            until(lambda: quantities() == ["2.5"], 60)
            assert api.get("/sign-in").status_code == 200, "pages have their templates"
        for container in (serve, sink):
            container.stop(timeout=30)
            assert container.wait(timeout=10)["StatusCode"] == 0, container.logs().decode()[-2000:]


def _answers(container: Any, port: int, path: str) -> bool:
    container.reload()
    assert container.status == "running", container.logs().decode()[-3000:]
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
