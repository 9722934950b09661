"""events send|void: usage events by hand; import and tail have modules of their own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from deploy.local.stack import read_admin_key
from runtime.clock import now_us
from schemas.period import format_rfc3339
from schemas.settings import Settings
from usage_billing.client import EventsRefused, NoAnswer, UsageClient
from usage_billing.console import DONE, fail, settings_for, wrong_usage

app = App(name="events", help="Usage events: look at them as they come, send some, void one, import a file.")
app.command("usage_billing.commands.events_import:import_", name="import")
app.command("usage_billing.commands.events_tail:tail", name="tail")

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
Key = Annotated[
    str | None,
    Parameter(
        help="API key with the scope ingest; also USAGE_API_KEY, USAGE_ADMIN_KEY or the local stack's admin key.",
        name="--key",
    ),
]
Address = Annotated[
    str | None, Parameter(help="Address of the gateway; by default USAGE_HTTP_HOST and _PORT.", name="--address")
]


# -- send and void -----------------------------------------------------------------------------------------------------


@app.command
def send(
    *,
    customer: Annotated[str, Parameter(help="customer_id")],
    event_name: Annotated[str, Parameter(help="event_name")],
    value: Annotated[str | None, Parameter(help="A decimal number.", allow_leading_hyphen=True)] = None,
    timestamp: Annotated[str | None, Parameter(help="RFC 3339 with offset; by default now.")] = None,
    event_id: str | None = None,
    key: Key = None,
    address: Address = None,
) -> int:
    """Send one event and print the receipt."""
    settings = settings_for("events-send")
    event = {
        "customer_id": customer,
        "event_name": event_name,
        "timestamp": timestamp or format_rfc3339(now_us()),
        **({} if value is None else {"value": value}),
        **({} if event_id is None else {"event_id": event_id}),
    }
    try:
        with client_for(settings, key, address) as client:
            receipt = client.send([event])
    except (EventsRefused, NoAnswer) as error:
        fail(str(error))
    print(msgspec.json.encode(receipt).decode())
    return DONE


@app.command
def void(
    *,
    customer: Annotated[str, Parameter(help="customer_id")],
    event_name: Annotated[str, Parameter(help="event_name")],
    event_id: Annotated[str, Parameter(help="As the event's producer named it.")],
    reason: Annotated[str, Parameter(help="Why it is not to count; kept with the tombstone.")],
    key: Annotated[
        str | None,
        Parameter(
            help="API key with the scope admin; also USAGE_API_KEY, USAGE_ADMIN_KEY or the local stack's admin key."
        ),
    ] = None,
    address: Address = None,
) -> int:
    """Void an event, so that it does not count, and print its tombstone's offset."""
    settings = settings_for("events-void")
    try:
        with client_for(settings, key, address) as client:
            partition, offset = client.void(customer, event_name, event_id, reason)
    except (EventsRefused, NoAnswer) as error:
        fail(str(error))
    print(msgspec.json.encode({"partition": partition, "offset": offset}).decode())
    return DONE


def client_for(
    settings: Settings, key: str | None, address: str | None, *, on_wait: Callable[[str], None] = lambda reason: None
) -> UsageClient:
    """A client with the key that was given, of the environment, or of the operator. Ends with 2 without any.

    The local stack's admin key goes only to this machine: never to an address that was given.
    """
    admin = settings.admin_key.get_secret_value() if settings.admin_key else None
    secret = key or os.environ.get("USAGE_API_KEY") or admin
    if not secret and address is None and settings.http_host in _LOOPBACK:
        secret = read_admin_key(settings)
    if not secret:
        wrong_usage("no key: give --key or set USAGE_API_KEY; `usage-billing keys create --scope ingest` makes one")
    return UsageClient(address or f"http://{settings.http_host}:{settings.http_port}", secret, on_wait=on_wait)
