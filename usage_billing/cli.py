"""usage-billing: every command of the contract; each does its work in the package that it names."""

from __future__ import annotations

import sys
from typing import NoReturn

import cyclopts
from pydantic import ValidationError
from rich.console import Console

from runtime.logging import configure_logging
from schemas.settings import Settings

app = cyclopts.App(
    name="usage-billing",
    help="Usage metering and billing on Kafka: exact to the last event and cent.",
    version_flags=["--version"],
)
_errors = Console(stderr=True, highlight=False)

DONE, FAILED, WRONG_USAGE = 0, 1, 2


def _settings(service: str) -> Settings:
    try:
        settings = Settings()
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            name = ".".join(str(part) for part in detail["loc"])
            _errors.print(f"[red]setting {name}: {detail['msg']}")
        raise SystemExit(WRONG_USAGE) from None
    configure_logging(settings, service)
    return settings


def fail(message: str) -> NoReturn:
    """Say why and end with exit code 1."""
    _errors.print(f"[red]{message}", soft_wrap=True)
    raise SystemExit(FAILED)


@app.command
def serve() -> int:
    """Serve gateway and dashboard on one port."""
    from usage_billing.serve import run

    return run(_settings("serve"))


@app.command
def gateway() -> int:
    """Serve the events endpoint alone."""
    from usage_billing.serve import run

    return run(_settings("gateway"), dashboard=False)


@app.command
def dashboard() -> int:
    """Serve the dashboard, control and read API without the events endpoint."""
    from usage_billing.serve import run

    return run(_settings("dashboard"), gateway=False)


@app.command
def aggregator() -> int:
    """Keep live totals and raise alerts."""
    from stream_processors.aggregator import run

    return run(_settings("aggregator"))


@app.command
def sink() -> int:
    """Store events in ClickHouse and project catalog, ledger and alerts."""
    from stream_processors.sink import run

    return run(_settings("sink"))


@app.command
def billing() -> int:
    """Close what is due, by itself, and follow payments."""
    from billing_job.worker import run

    return run(_settings("billing"))


@app.command
def migrate() -> int:
    """Bring ClickHouse's tables up to date."""
    from warehouse.migrate import migrate as run

    applied = run(_settings("migrate"))
    print("\n".join(applied) if applied else "nothing to do")
    return DONE


topics = app.command(cyclopts.App(name="topics", help="Kafka's topics."))


@topics.command(name="create")
def topics_create() -> int:
    """Create the topics that are missing."""
    from runtime.topics import create_topics

    made = create_topics(_settings("topics"))
    print("\n".join(made) if made else "nothing to do")
    return DONE


@topics.command(name="list")
def topics_list() -> int:
    """List the topics with partitions and settings as they are made."""
    from rich.table import Table

    from schemas.topics import topic_specs

    table = Table("topic", "partitions", "settings")
    for spec in topic_specs(_settings("topics")):
        table.add_row(spec.name, str(spec.partitions), " ".join(f"{k}={v}" for k, v in sorted(spec.config.items())))
    Console().print(table)
    return DONE


@app.command
def settings() -> int:
    """List every setting: name, value in force, default, meaning."""
    from rich.table import Table

    from usage_billing.describe import describe_settings

    table = Table("setting", "value", "default", "meaning")
    for row in describe_settings(_settings("settings")):
        table.add_row(*row)
    Console().print(table)
    return DONE


def main() -> None:
    """Entry point; the exit codes of the contract."""
    try:
        result = app(sys.argv[1:], exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        raise SystemExit(WRONG_USAGE) from None
    raise SystemExit(result if isinstance(result, int) else DONE)


if __name__ == "__main__":
    main()
