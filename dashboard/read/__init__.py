"""HTTP → what was used, what it costs, what happened. Scope read."""

from fastapi import APIRouter

from dashboard.read import (
    alerts,
    audit,
    benefits,
    duplicates,
    finance,
    invoices,
    live_usage,
    stream,
    usage,
)


def routers() -> list[APIRouter]:
    """All routes of the read API."""
    return [
        module.router for module in (live_usage, usage, duplicates, invoices, benefits, finance, alerts, audit, stream)
    ]
