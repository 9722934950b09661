"""The local ClickHouse's address has the password that it has made, and nobody is shown it."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.settings import Settings
from usage_billing.describe import describe_settings

DSN = "USAGE_CLICKHOUSE_DSN"


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(DSN, raising=False)
    (tmp_path / "clickhouse").mkdir()
    return tmp_path


def test_the_default_address_reads_the_password(local: Path) -> None:
    (local / "clickhouse" / "password").write_text("s3cret_-\n")
    settings = Settings(local_dir=local, local_clickhouse_port=21699)
    assert settings.clickhouse_dsn == "http://usage:s3cret_-@127.0.0.1:21699/usage"
    assert "clickhouse_dsn" not in settings.model_fields_set


def test_before_the_first_start_there_is_no_password(local: Path) -> None:
    assert Settings(local_dir=local).clickhouse_dsn == "http://usage@127.0.0.1:8123/usage"


@pytest.mark.parametrize(("dsn", "shown"), [
    ("http://usage:s3cret@127.0.0.1:8123/usage", "http://usage:****@127.0.0.1:8123/usage"),
    ("https://a:%40%3A@host:8443/u?x=1",         "https://a:****@host:8443/u?x=1"),
    ("http://default@host:8123/u",               "http://default@host:8123/u"),
])  # fmt: skip
def test_settings_mask_a_password_in_an_address(dsn: str, shown: str) -> None:
    (row,) = [row for row in describe_settings(Settings(clickhouse_dsn=dsn)) if row[0] == DSN]
    assert row[1] == shown
    assert "s3cret" not in str(row)
