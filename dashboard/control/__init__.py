"""HTTP → catalog: what a merchant configures. Scope admin.

Lists come newest first, a page at a time. Updates and deletions take If-Match with an object's version (its ETag): sent
and stale is 412; not sent, the version is the one that the request found. Losing a race to another writer is 409.
POSTs take an Idempotency-Key: a repeated one answers with the object that the first one made. DELETE archives: the
object can still be read and is out of force.
"""

from fastapi import APIRouter

from dashboard.control import (
    alert_rules,
    api_keys,
    changes,
    customers,
    invoices,
    meters,
    organization,
    products,
    subscriptions,
    webhook_deliveries,
    webhook_endpoints,
)


def routers() -> list[APIRouter]:
    """All routes of the control API."""
    return [
        module.router
        for module in (
            meters,
            products,
            customers,
            subscriptions,
            alert_rules,
            webhook_endpoints,
            webhook_deliveries,
            api_keys,
            organization,
            invoices,
            changes,
        )
    ]
