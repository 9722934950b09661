"""deploy/production and deploy/systemd: three brokers, TLS and passwords, secrets in files alone, settings that exist."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values

from schemas.settings import Settings
from usage_billing.cli import app
from usage_billing.describe import describe_settings

DEPLOY = Path(__file__).parents[3] / "deploy"
PRODUCTION = DEPLOY / "production"
BROKERS = ("kafka-1", "kafka-2", "kafka-3")
SERVICES = ("serve", "aggregator", "sink", "billing")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((PRODUCTION / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make-secrets.sh writes."""
    directory = tmp_path_factory.mktemp("production") / "secrets"
    subprocess.run([PRODUCTION / "make-secrets.sh", directory], check=True, capture_output=True)
    return directory


def targets(service: dict[str, Any]) -> dict[str, str]:
    """Secret → where its container has it."""
    found = (each if isinstance(each, dict) else {"source": each, "target": each} for each in service["secrets"])
    return {each["source"]: each["target"] for each in found}


def test_every_secret_is_a_file_that_the_script_writes(compose: dict[str, Any], secrets: Path) -> None:
    declared = {name: Path(each["file"]).name for name, each in compose["secrets"].items()}
    assert all((secrets / name).is_file() for name in declared.values())
    used = {name for service in compose["services"].values() for name in targets(service)} - {None}
    assert used == set(declared)
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "ca.key").stat().st_mode) == 0o400
    assert "ca.key" not in declared.values()
    again = subprocess.run([PRODUCTION / "make-secrets.sh", secrets], check=False, capture_output=True)
    assert again.returncode == 1  # never over others


def test_no_environment_holds_a_secret(compose: dict[str, Any], secrets: Path) -> None:
    secret = {name for name, value in dotenv_values(secrets / "services.env").items() if name != value}
    for name, service in compose["services"].items():
        assert not secret & set(service.get("environment", {})), name
    assert "password" not in (PRODUCTION / "compose.yaml").read_text().lower().replace("passwords", "")


def test_services_know_every_setting(compose: dict[str, Any], secrets: Path) -> None:
    known = {name for name, *_ in describe_settings(Settings.model_construct())}
    librdkafka = re.compile(r"USAGE_KAFKA_(SECURITY_PROTOCOL|SASL_\w+|SSL_\w+)")
    for name in SERVICES:
        service = compose["services"][name]
        given = {*service["environment"], *dotenv_values(secrets / "services.env")}
        assert {each for each in given - known if not librdkafka.fullmatch(each)} == set(), name
        assert service["command"][0] in app
        assert targets(service)["services.env"] == "/data/.env"  # Settings read .env of the working directory
        assert service["restart"] == "unless-stopped"
        assert service["read_only"]
        assert service["healthcheck"]["test"][:4] == ["CMD", "python", "-m", "deploy.ready"]


def test_the_services_settings_are_valid_once_stripe_is_named(
    compose: dict[str, Any], secrets: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (secrets / "services.env").read_text()
    text = text.replace("STRIPE_API_KEY=", "STRIPE_API_KEY=sk_live_x").replace(
        "STRIPE_WEBHOOK_SECRET=", "STRIPE_WEBHOOK_SECRET=whsec_x"
    )
    (tmp_path / ".env").write_text(text)
    monkeypatch.chdir(tmp_path)
    for name, value in compose["services"]["serve"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    settings = Settings()
    assert settings.kafka_min_insync_replicas == 2
    assert settings.kafka_properties["sasl.password"] in (secrets / "kafka-1.properties").read_text()
    assert settings.kafka_properties["security.protocol"] == "SASL_SSL"


def test_clickhouse_lets_in_one_user_by_the_password_that_services_have(compose: dict[str, Any], secrets: Path) -> None:
    users = (secrets / "clickhouse-users.xml").read_text()
    dsn = dotenv_values(secrets / "services.env")["USAGE_CLICKHOUSE_DSN"] or ""
    password = re.fullmatch(r"http://usage:(\w+)@clickhouse:8123/usage", dsn)
    assert password is not None
    assert hashlib.sha256(password[1].encode()).hexdigest() in users
    assert '<default remove="remove"/>' in users
    assert targets(compose["services"]["clickhouse"])["clickhouse-users.xml"].startswith(
        "/etc/clickhouse-server/users.d/"
    )
    assert "ports" not in compose["services"]["clickhouse"]


def test_three_brokers_of_which_one_may_be_lost(compose: dict[str, Any], secrets: Path) -> None:
    for number, name in enumerate(BROKERS, 1):
        properties = dict(
            line.split("=", 1)
            for line in (secrets / f"{name}.properties").read_text().splitlines()
            if line[:1] not in ("", "#")
        )
        assert properties["node.id"] == str(number)
        assert properties["default.replication.factor"] == "3"
        assert properties["min.insync.replicas"] == "2"
        assert "PLAINTEXT" not in properties["listener.security.protocol.map"]
        service = compose["services"][name]
        assert targets(service)[f"{name}.properties"] == "/mnt/shared/config/server.properties"
        assert properties["ssl.keystore.location"] == f"/run/secrets/{targets(service)[f'{name}.pem']}"
        assert "ports" not in service
    assert len({compose["services"][name]["volumes"][0] for name in BROKERS}) == 3


def test_ports_are_open_to_this_machine_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 1
    assert ports[0].startswith("127.0.0.1:")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Each service is a command of ours; the program's path is one that is there, for the check alone."""
    unit = (DEPLOY / "systemd" / "usage-billing@.service").read_text()
    program = re.search(r"^ExecStart=(\S+) %i$", unit, re.M)
    assert program is not None
    (tmp_path / "usage-billing@.service").write_text(unit.replace(program[1], "/bin/true"))
    shutil.copy(DEPLOY / "systemd" / "usage-billing.target", tmp_path)
    units = [
        tmp_path / f"usage-billing@{name}.service" for name in ("gateway", "dashboard", "aggregator", "sink", "billing")
    ]
    for each in units:
        assert each.name.removeprefix("usage-billing@").removesuffix(".service") in app
        each.symlink_to(tmp_path / "usage-billing@.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units, tmp_path / "usage-billing.target"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "usage-billing" in line]
    assert ours == [], done.stderr
