"""/v1/events. Source: Stripe API reference, "Events"."""

from __future__ import annotations

import msgspec

from stripe_standin.errors import InvalidParameter, missing
from stripe_standin.paging import limit, listed
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope
from stripe_standin.store import Store, StoredEvent

TIME_MAX = 2**62


def render(store: Store, event: StoredEvent) -> Json:
    body: Json = msgspec.json.decode(event.body)
    return body | {"pending_webhooks": store.pending_webhooks(event.id)}


def _own(scope: Scope, id_: str, param: str, status: int) -> StoredEvent:
    event = scope.world.store.event(id_)
    if event is None or event.account != scope.account.id:
        raise missing("event", id_, param, status=status)
    return event


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope.world.store, _own(scope, path[0], "id", 404))


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    if params.get("type") is not None and params.get("types") is not None:
        raise InvalidParameter("You may only specify one of these parameters: type, types.", "types")
    types = (params["type"],) if params.get("type") is not None else tuple(params.get("types") or ())
    first, last = _bounds(params.get("created"))
    size = limit(params)
    after, before = (
        None if params.get(name) is None else _own(scope, params[name], name, 400).seq
        for name in ("starting_after", "ending_before")
    )
    store = scope.world.store
    found = store.events(scope.account.id, types, first, last, after, before, size + 1)
    more = len(found) > size
    shown = found[-size:] if before is not None else found[:size]
    return listed("/v1/events", [render(store, e) for e in shown], more)


def _bounds(created: int | dict[str, int] | None) -> tuple[int, int]:
    """A filter of times as an inclusive range."""
    if created is None:
        return 0, TIME_MAX
    if isinstance(created, int):
        return created, created
    first = max(created.get("gte", 0), created.get("gt", -1) + 1)
    return first, min(created.get("lte", TIME_MAX), created.get("lt", TIME_MAX + 1) - 1)


ROUTES = (
    Route("GET", "/v1/events", "EventListParams", "type types created limit starting_after ending_before", list_all),
    Route("GET", "/v1/events/{}", "EventRetrieveParams", "", retrieve),
)
