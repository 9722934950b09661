"""up|down|status: the local stack and all services on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.table import Table

from deploy.local import stack
from schemas.settings import Settings
from usage_billing.console import DONE, FAILED, fail, out, settings_for


def up() -> int:
    """Start the local stack and all services; returns when everything is ready."""
    settings = settings_for("up")
    try:
        started = stack.up(settings, say=lambda line: out.print(line, style="dim", markup=False))
    except stack.StackFailed as error:
        fail(str(error))
    table = Table("part", "address", title="running already" if started.already else "ready")
    for name, address in started.addresses.items():
        table.add_row(name, address)
    out.print(table)
    print_access(settings, started)
    return DONE


def print_access(settings: Settings, started: stack.Started) -> None:
    """The dashboard's address, and where the key to sign in with is. A key is printed by the `up` that made it only."""
    out.print(f"dashboard  http://{settings.http_host}:{settings.http_port}/", soft_wrap=True)
    if started.admin_key:
        out.print(f"admin key  {started.admin_key}   (shown this once)", soft_wrap=True)
    out.print(f"admin key  is in {started.admin_key_file or 'USAGE_ADMIN_KEY'}", soft_wrap=True)


def down() -> int:
    """End what `up` started."""
    try:
        stack.down(settings_for("down"), say=lambda line: out.print(line, style="dim", markup=False))
    except stack.StackFailed as error:
        fail(str(error))
    return DONE


def status(*, json: Annotated[bool, Parameter(help="As JSON.", negative="")] = False) -> int:
    """Show every process of the local stack; 1 unless all are ready."""
    parts = stack.status(settings_for("status"))
    if json:
        print(msgspec.json.encode([asdict(part) for part in parts]).decode())
    else:
        table = Table("name", "pid", "address", "state", "lag", "starts")
        for part in parts:
            cells = (part.pid, part.address, part.state, part.lag, part.starts)
            table.add_row(part.name, *("" if cell is None else str(cell) for cell in cells))
        out.print(table)
    return DONE if parts and all(part.state in ("ready", "given") for part in parts) else FAILED
