"""usage-billing: every command of the contract; each does its work in the package that it names."""

from __future__ import annotations

import sys
from typing import Annotated

import cyclopts
import structlog
from confluent_kafka import KafkaException
from rich.table import Table

from runtime.kafka.client_watch import end_process_of_lost_clients
from usage_billing.console import DONE, FAILED, WRONG_USAGE, fail, out, settings_for

app = cyclopts.App(
    name="usage-billing",
    help="Usage metering and billing on Kafka: exact to the last event and cent.",
    version_flags=["--version"],
)
# By name: a service that starts (or starts again) need not load what other commands use, which takes seconds.
app.command(
    "usage_billing.commands.events:app",
    name="events",
    help="Usage events: tail, send, void, import a file.",
)
app.command(
    "usage_billing.commands.dead_letters:app",
    name="dead-letters",
    help="Messages of usage.events that could not be read: list, replay.",
)
app.command(
    "usage_billing.commands.objects_import:customers",
    name="customers",
    help="Customers: import a file.",
)
app.command(
    "usage_billing.commands.objects_import:subscriptions",
    name="subscriptions",
    help="Subscriptions: import a file.",
)
app.command("usage_billing.commands.keys:app", name="keys", help="API keys.")
app.command(
    "usage_billing.commands.shards:app",
    name="shards",
    help="Which server of USAGE_CLICKHOUSE_SHARDS has a partition of usage.events.",
)
app.command(
    "usage_billing.commands.organizations:app",
    name="organizations",
    help="Organizations: settings that only the operator changes.",
)
app.command(
    "usage_billing.commands.analysts:app",
    name="analysts",
    help="Read-only users of ClickHouse, for people and their tools.",
)
app.command(
    "usage_billing.commands.billing:app",
    name="invoice",
    help="Invoices: show, explain, verify, preview, simulate, void, credit.",
)
app.command(
    "usage_billing.commands.billing_service:app",
    name="billing",
    help="Close due cycles continuously and follow payments; retry or approve by hand.",
)
app.command(
    "usage_billing.commands.billing:close",
    help="Close every cycle due at a time: price it, fix its invoice, have Stripe charge it.",
)
app.command(
    "usage_billing.commands.finance:app", name="finance", help="For finance: lines, revenue, open items, accruals."
)
app.command(
    "usage_billing.commands.audit:audit",
    help="Assign every accepted event to one class and compare live totals; exit with 1 when it does not balance.",
)
app.command(
    "usage_billing.commands.duplicates:duplicates",
    help="List events that were sent more than once, and those whose copies differ.",
)
app.command(
    "usage_billing.commands.refill:refill",
    help="Store messages of usage.events in ClickHouse again, where the audit names rows that are missing.",
)
app.command(
    "usage_billing.commands.reconcile:reconcile",
    help="Compare live totals with ClickHouse and repair differences.",
)
app.command(
    "usage_billing.commands.backup:backup",
    help="Save what only Kafka and ClickHouse hold in a directory: catalog, ledger, events. Services may run.",
)
app.command(
    "usage_billing.commands.backup:restore",
    help="Write a backup into empty topics and tables; the whole backup is checked first.",
)
app.command(
    "usage_billing.commands.local:up", help="Start the local stack and all services; returns when everything is ready."
)
app.command(
    "usage_billing.commands.doctor:doctor",
    help="Check a deployment and print each problem with its remedy; exit with 1 when there is one.",
)
app.command("usage_billing.commands.local:down", help="End what `up` started.")
app.command(
    "usage_billing.commands.local:status",
    help="Show every process of the local stack; exit with 1 unless all are ready.",
)


@app.command
def demo(*, keep: Annotated[bool, cyclopts.Parameter(help="Leave everything running.", negative="")] = False) -> int:
    """Run the main job on real data: 481,722 events, 12 cycles, 192 invoices, each figure checked."""
    from usage_billing.demo.run import run

    return run(settings_for("demo"), keep=keep)


# -- services: imported when they are run, since each needs libraries that the others don't ----------------------------


@app.command
def serve() -> int:
    """Serve gateway and dashboard on one port."""
    from usage_billing.serve import run

    return run(settings_for("serve"))


@app.command
def gateway() -> int:
    """Serve the events endpoint alone."""
    from usage_billing.serve import run

    return run(settings_for("gateway"), dashboard=False)


@app.command
def dashboard() -> int:
    """Serve the dashboard, control and read API without the events endpoint."""
    from usage_billing.serve import run

    return run(settings_for("dashboard"), gateway=False)


@app.command
def aggregator() -> int:
    """Keep live totals and raise alerts."""
    from stream_processors.aggregator import run

    return run(settings_for("aggregator"))


@app.command
def sink() -> int:
    """Store events in ClickHouse and project catalog, ledger and alerts."""
    from stream_processors.sink import run

    return run(settings_for("sink"))


# -- setting up --------------------------------------------------------------------------------------------------------


@app.command
def migrate() -> int:
    """Bring ClickHouse's tables up to date."""
    from warehouse.client import WarehouseUnavailable
    from warehouse.migrate import ChangedMigration, InvalidDatabaseName
    from warehouse.migrate import migrate as run

    try:
        applied = run(settings_for("migrate"))
    except (WarehouseUnavailable, ChangedMigration, InvalidDatabaseName) as error:
        fail(str(error))
    print("\n".join(applied) if applied else "nothing to do")
    return DONE


topics = cyclopts.App(name="topics", help="Kafka's topics.")
app.command(topics)


@topics.command(name="create")
def topics_create() -> int:
    """Create the topics that are missing."""
    from runtime.kafka.admin import create_topics

    made = create_topics(settings_for("topics"))
    print("\n".join(made) if made else "nothing to do")
    return DONE


@topics.command(name="list")
def topics_list() -> int:
    """List the topics with partitions and settings as they are made."""
    from schemas.topics import topic_specs

    table = Table("topic", "partitions", "settings")
    for spec in topic_specs(settings_for("topics")):
        table.add_row(spec.name, str(spec.partitions), " ".join(f"{k}={v}" for k, v in sorted(spec.config.items())))
    out.print(table)
    return DONE


@app.command
def openapi() -> int:
    """Print the OpenAPI document of the HTTP API, as `GET /openapi.json` answers it."""
    from usage_billing.api_document import api_document

    print(api_document(settings_for("openapi")))
    return DONE


@app.command
def settings() -> int:
    """List every setting: name, value in force, default, meaning."""
    from usage_billing.describe import describe_settings

    table = Table("setting", "value", "default", "meaning")
    for row in describe_settings(settings_for("settings")):
        table.add_row(*row)
    out.print(table)
    return DONE


def main() -> None:
    """Entry point; exit codes: 0 done, 1 it failed, 2 wrong usage."""
    end_process_of_lost_clients()
    try:
        result = app(sys.argv[1:], exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        raise SystemExit(WRONG_USAGE) from None
    except KafkaException as error:
        structlog.get_logger(__name__).error("kafka_failed", error=str(error.args[0]))
        raise SystemExit(FAILED) from None
    raise SystemExit(result if isinstance(result, int) else DONE)


if __name__ == "__main__":
    main()
