"""environment and .env → Settings: every name that an operator can set, with its default and what it means."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.currency import AMOUNT_DIGITS_MAX
from schemas.networks import Networks, networks
from schemas.settings_rules import STANDIN_API_KEY, STANDIN_WEBHOOK_SECRET, unsafe

KAFKA_PREFIX = "USAGE_KAFKA_"
ENV_FILE = ".env"
CLICKHOUSE_USER = "usage"
"""Of the local ClickHouse."""
CLICKHOUSE_PASSWORD_FILE = "password"
"""In the local ClickHouse's directory; its whole text is the password."""


def _stripe(name: str) -> AliasChoices:
    return AliasChoices(name)


def _local_clickhouse_dsn(known: dict[str, Any]) -> str:
    """The password is the one that the local ClickHouse has made; without the file there is none yet."""
    try:
        password = ":" + (known["local_dir"] / "clickhouse" / CLICKHOUSE_PASSWORD_FILE).read_text().strip()
    except OSError:
        password = ""
    return f"http://{CLICKHOUSE_USER}{password}@127.0.0.1:{known['local_clickhouse_port']}/usage"


def _default_clickhouse_dsn(known: dict[str, Any]) -> str:
    shards = _separated(known["clickhouse_shards"])
    return shards[0] if shards else _local_clickhouse_dsn(known)


def _separated(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.replace(",", " ").split() if part)


class Settings(BaseSettings):
    """Settings of every service; `USAGE_` + the upper-case field name, but for Stripe's own names."""

    model_config = SettingsConfigDict(
        env_prefix="USAGE_",
        env_file=ENV_FILE,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,  # a secret among them would be in every traceback
    )

    # The local stack comes first: the addresses below follow it unless they are given.
    local_dir: Annotated[Path, Field(description="data, logs and pids of the local stack")] = Path(".local")
    local_kafka_port: Annotated[int, Field(ge=1, le=65535, description="local stack: Kafka")] = 9092
    local_kafka_controller_port: Annotated[
        int, Field(ge=1, le=65535, description="local stack: Kafka's controller")
    ] = 9093
    local_clickhouse_port: Annotated[
        int, Field(ge=1, le=65535, description="local stack: ClickHouse's HTTP interface")
    ] = 8123
    local_clickhouse_native_port: Annotated[
        int, Field(ge=1, le=65535, description="local stack: ClickHouse's native interface, for clickhouse-client")
    ] = 9000
    local_stripe_port: Annotated[int, Field(ge=1, le=65535, description="local stack: the Stripe stand-in")] = 12111

    http_host: Annotated[str, Field(description="address that `serve`, `gateway` and `dashboard` listen on")] = (
        "127.0.0.1"
    )
    http_port: Annotated[int, Field(ge=1, le=65535, description="port of the HTTP API and the dashboard")] = 8080
    http_metrics_port: Annotated[
        int | None,
        Field(
            ge=1,
            le=65535,
            description="health and metrics of `serve`, `gateway` and `dashboard` on `USAGE_METRICS_HOST` too; "
            "their HTTP port shows /metrics to loopback and the operator's admin keys only",
        ),
    ] = None
    trusted_proxies: Annotated[
        str,
        Field(
            description="reverse proxies whose X-Forwarded-For is believed: addresses or networks, separated by commas"
        ),
    ] = ""
    metrics_host: Annotated[
        str, Field(description="address of /healthz, /readyz and /metrics on the ports for metrics")
    ] = "127.0.0.1"
    aggregator_metrics_port: Annotated[int, Field(ge=1, le=65535, description="health and metrics of `aggregator`")] = (
        8081
    )
    sink_metrics_port: Annotated[int, Field(ge=1, le=65535, description="health and metrics of `sink`")] = 8082
    billing_metrics_port: Annotated[int, Field(ge=1, le=65535, description="health and metrics of `billing`")] = 8083

    kafka_bootstrap_servers: Annotated[
        str,
        Field(
            description="Kafka brokers; further `USAGE_KAFKA_…` are librdkafka's",
        ),
    ] = Field(default_factory=lambda known: f"127.0.0.1:{known['local_kafka_port']}")
    kafka_replication_factor: Annotated[
        int | None,
        Field(ge=1, le=7, description="replicas of new topics; none: the broker's default"),
    ] = None
    kafka_min_insync_replicas: Annotated[
        int | None, Field(ge=1, le=7, description="min.insync.replicas of new topics; none: the broker's default")
    ] = None
    event_partitions: Annotated[
        int, Field(ge=1, le=1024, description="partitions of usage.events; fixed at first start")
    ] = 12
    topic_prefix: Annotated[
        str, Field(pattern=r"^[a-zA-Z0-9._-]{0,64}$", description="prefix of every topic and group")
    ] = ""

    clickhouse_shards: Annotated[
        str,
        Field(
            repr=False,
            description="ClickHouse servers that share usage's partitions, as USAGE_CLICKHOUSE_DSN, separated by "
            "commas; their order is fixed, the first one also has catalog and invoices; empty: one server",
        ),
    ] = ""
    clickhouse_dsn: Annotated[
        str,
        Field(
            repr=False,  # it may contain a password
            description="ClickHouse's HTTP address, user, password and database; the local one's password: "
            "USAGE_LOCAL_DIR/clickhouse/password; with USAGE_CLICKHOUSE_SHARDS: the first of them",
        ),
    ] = Field(default_factory=_default_clickhouse_dsn)

    stripe_api_key: Annotated[
        SecretStr, Field(validation_alias=_stripe("STRIPE_API_KEY"), description="Stripe secret key")
    ] = SecretStr(STANDIN_API_KEY)
    stripe_api_base: Annotated[
        str,
        Field(
            validation_alias=_stripe("STRIPE_API_BASE"),
            description="Stripe's address",
        ),
    ] = Field(default_factory=lambda known: f"http://127.0.0.1:{known['local_stripe_port']}")
    stripe_webhook_secret: Annotated[
        SecretStr,
        Field(
            validation_alias=_stripe("STRIPE_WEBHOOK_SECRET"),
            description="Stripe's webhook secret; of several endpoints, with commas between",
        ),
    ] = SecretStr(STANDIN_WEBHOOK_SECRET)

    stripe_calls_per_second: Annotated[
        int | None,
        Field(ge=1, description="most calls to Stripe per second; none: Stripe's own limit, and no limit elsewhere"),
    ] = None
    stripe_amount_digits_max: Annotated[
        int,
        Field(
            ge=AMOUNT_DIGITS_MAX, le=12, description="digits of the largest total, in minor units, to send to Stripe"
        ),
    ] = AMOUNT_DIGITS_MAX
    stripe_timeout_seconds: Annotated[float, Field(gt=0, description="timeout of a call to Stripe")] = 20.0
    stripe_retry_seconds: Annotated[
        float, Field(gt=0, description="a failing call to Stripe is retried for this long")
    ] = 30.0

    billing_seconds: Annotated[float, Field(gt=0, description="seconds between two rounds of `billing`")] = 30.0
    sweep_seconds: Annotated[
        float,
        Field(
            gt=0,
            description="longest time between two polls of an open invoice, for changes whose webhooks were missed",
        ),
    ] = 900.0
    billing_concurrency: Annotated[
        int, Field(ge=1, le=256, description="customers that a process invoices at the same time")
    ] = 16
    coverage_timeout_seconds: Annotated[
        float, Field(gt=0, description="longest wait of a close for ClickHouse to have the events that it counts")
    ] = 120.0
    close_grace_seconds: Annotated[int, Field(ge=0, description="wait after a cycle's end before it is closed")] = 3600
    benefits_grace_seconds: Annotated[
        int, Field(ge=0, description="benefits stay active this long where a customer must bring a card or confirm")
    ] = 7 * 86400
    webhook_private_targets: Annotated[
        bool, Field(description="send webhooks to private and loopback addresses too, and without TLS")
    ] = False
    webhook_timeout_seconds: Annotated[
        float, Field(gt=0, le=60, description="timeout of a merchant's webhook endpoint")
    ] = 10.0
    webhook_retry_seconds: Annotated[
        float, Field(gt=0, description="first wait before a webhook is sent again; fourfold each time, for 24 h")
    ] = 5.0
    admin_key: Annotated[SecretStr | None, Field(description="admin key accepted from the first start on")] = None
    session_secret: Annotated[
        SecretStr | None,
        Field(
            description="signs the dashboard's sessions; the same for every process. "
            "Default: kept in `USAGE_LOCAL_DIR/session-secret`"
        ),
    ] = None
    log_format: Annotated[str, Field(pattern="^(console|json)$", description="console or json")] = "console"
    log_level: Annotated[
        str, Field(pattern="^(debug|info|warning|error)$", description="lowest level that is logged")
    ] = "info"

    body_bytes_max: Annotated[
        int, Field(ge=1024, description="largest request body, before and after decompression")
    ] = 4 * 1024 * 1024
    access_log_sample: Annotated[
        int,
        Field(
            ge=0,
            description="one of so many successful posts of events is logged, other requests all; 0: none",
        ),
    ] = 100
    key_requests_per_second: Annotated[
        int, Field(ge=1, description="requests of one API key to one process before 429")
    ] = 50_000
    organization_requests_per_second: Annotated[
        int, Field(ge=1, description="requests of all keys of an organization to one process before 429")
    ] = 100_000
    key_failures_per_minute: Annotated[
        int,
        Field(ge=1, description="answers 400, 403, 408, 413, 415 and 422 of one process to one API key before 429"),
    ] = 6_000
    organization_failures_per_minute: Annotated[
        int, Field(ge=1, description="the same to all keys of an organization")
    ] = 60_000
    key_streams_max: Annotated[
        int, Field(ge=1, description="open streams of one API key or its sessions in one process before 429")
    ] = 50
    organization_streams_max: Annotated[
        int, Field(ge=1, description="open streams of an organization in one process before 429")
    ] = 500
    linger_ms: Annotated[
        int,
        Field(ge=0, le=1000, description="longest time that a request waits to be batched with others"),
    ] = 10
    delivery_timeout_ms: Annotated[
        int,
        Field(
            ge=100, description="a request is answered 503 when Kafka has not acknowledged its events after this time"
        ),
    ] = 4000
    queue_events_max: Annotated[int, Field(ge=1000, description="events awaiting acknowledgement before 503")] = 500_000
    queue_bytes_max: Annotated[
        int,
        Field(
            ge=1024 * 1024,
            le=1024 * 1024 * 1024,
            description="bytes of requests awaiting acknowledgement before 503",
        ),
    ] = 256 * 1024 * 1024

    reconcile_seconds: Annotated[
        float, Field(gt=0, description="seconds between two comparisons of all live totals with ClickHouse")
    ] = 3600.0
    dedupe_horizon_hours: Annotated[
        int, Field(ge=1, description="hours of log time for which live totals remember event IDs")
    ] = 48
    dedupe_ids_max: Annotated[
        int, Field(ge=1000, description="most event IDs remembered per partition, whatever the horizon")
    ] = 10_000_000
    live_cycle_days: Annotated[
        int, Field(ge=1, description="days that live totals of a cycle are kept after its end")
    ] = 1130
    live_series_per_organization_max: Annotated[
        int,
        Field(
            ge=1,
            description="most series (customer × event name) of an organization with live totals, an even share in "
            "each partition; others are in ClickHouse only. The same in every service",
        ),
    ] = 1_000_000
    flush_seconds: Annotated[
        float, Field(gt=0, le=60, description="seconds between two publications of live totals")
    ] = 1.0

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, text: str) -> str:
        networks(text)
        return text

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        if reasons := list(unsafe(self)):
            raise ValueError("; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _one_first_server(self) -> Settings:
        if self.clickhouse_dsn != self.clickhouse_dsns[0]:
            raise ValueError("USAGE_CLICKHOUSE_DSN differs from the first of USAGE_CLICKHOUSE_SHARDS: leave it out")
        if len(set(self.clickhouse_dsns)) < len(self.clickhouse_dsns):
            raise ValueError("USAGE_CLICKHOUSE_SHARDS names a server twice")
        return self

    @property
    def clickhouse_dsns(self) -> tuple[str, ...]:
        """Of each shard, in their order; one without shards."""
        return _separated(self.clickhouse_shards) or (self.clickhouse_dsn,)

    @property
    def live_series_per_partition_max(self) -> int:
        """Series of an organization with live totals in one partition."""
        return -(-self.live_series_per_organization_max // self.event_partitions)

    @property
    def proxies(self) -> Networks:
        """Whose X-Forwarded-For is believed."""
        return networks(self.trusted_proxies)

    @cached_property
    def kafka_properties(self) -> dict[str, str]:
        """librdkafka properties for every client: bootstrap.servers and each `USAGE_KAFKA_…` that is not a field here.

        `USAGE_KAFKA_SASL_USERNAME=u` becomes `sasl.username=u`. The environment wins over .env.
        """
        given = {**{k: v for k, v in dotenv_values(ENV_FILE).items() if v is not None}, **os.environ}
        own = {f"USAGE_{name.upper()}" for name in type(self).model_fields}
        more = {
            name.removeprefix(KAFKA_PREFIX).lower().replace("_", "."): value
            for name, value in given.items()
            if name.startswith(KAFKA_PREFIX) and name not in own and value
        }
        # librdkafka's own log repeats each failed connection 20 times a second; our error callbacks say it once.
        return {"log_level": "2", **more, "bootstrap.servers": self.kafka_bootstrap_servers}
