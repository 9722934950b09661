"""a merchant's change → one record in the catalog's log, answered by its fate there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import TypeVar

from catalog.record import CatalogObject, kind_of
from catalog.store import CatalogConflict, CatalogStore, CatalogUnavailable
from dashboard.problems import field_problem
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.ids import PREFIXES, new_id
from schemas.organization import ApiKey
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.webhook_endpoint import WebhookEndpoint

T = TypeVar("T", bound=CatalogObject)

IDEMPOTENCY_KEY_LENGTH_MAX = 255
WRITE_SECONDS_MAX = 10.0
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_LENGTH = 24


def require_idempotency_key(idempotency_key: str | None) -> None:
    """Raises Problem 400 for one that is sent and is too long, or empty."""
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= IDEMPOTENCY_KEY_LENGTH_MAX:
        raise Problem(400, "invalid_idempotency_key", f"1 to {IDEMPOTENCY_KEY_LENGTH_MAX} characters are allowed")


def object_id(kind: str, organization_id: str, idempotency_key: str | None) -> str:
    """A new id; with an Idempotency-Key always the same one, so that a retry meets its object in the log itself."""
    require_idempotency_key(idempotency_key)
    if idempotency_key is None:
        return new_id(kind)
    digest = hashlib.sha256(f"{organization_id}\0{kind}\0{idempotency_key}".encode()).digest()
    number, text = int.from_bytes(digest), ""
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, 36)
        text += _BASE36[digit]
    return f"{PREFIXES[kind]}_{text}"


async def write(store: CatalogStore, state: T, expected_version: int) -> T:
    """Write, and wait until the view has it. Raises CatalogConflict or CatalogUnavailable."""
    fate = asyncio.wrap_future(store.submit(state, expected_version))
    try:
        # Shielded: the catalog's thread sets this future whether or not the client still waits for it.
        refusal = await asyncio.wait_for(asyncio.shield(fate), WRITE_SECONDS_MAX)
    except TimeoutError as error:
        raise CatalogUnavailable("the catalog's log did not answer in time") from error
    if refusal:
        raise CatalogConflict(refusal)
    return state


async def create(store: CatalogStore, state: T, idempotency_key: str | None) -> tuple[T, int]:
    """Write a new object; it and its version.

    With an Idempotency-Key, the object that an earlier try made is the answer. Raises Problem
    `idempotency_key_reused` when that one was made of something else, CatalogConflict, CatalogUnavailable.
    """
    try:
        await write(store, state, 0)
        return state, 1
    except CatalogConflict:
        if idempotency_key is None:
            raise
        made = store.view.get(type(state), state.organization_id, state.id)
        if made is None:  # refused for another reason than that it exists
            raise
        version = store.view.version(type(state), state.organization_id, state.id)
        if version == 1 and not is_same_request(made, state):  # what was changed since may differ in anything
            raise Problem(
                422,
                "idempotency_key_reused",
                "this Idempotency-Key came with another request before; use a new one for a new object",
            ) from None
        return made, version


def is_same_request(made: CatalogObject, asked: CatalogObject) -> bool:
    """Whether both came of one request, as far as can be told."""
    clock = {"created_at", "secret"}  # what each try makes anew
    if isinstance(made, Subscription) and isinstance(asked, Subscription) and asked.started_at == asked.created_at:
        clock.add("started_at")  # not given: the clock's at each try
    return made.model_dump(exclude=clock) == asked.model_dump(exclude=clock)


def found(store: CatalogStore, model: type[T], organization_id: str, id_: str) -> tuple[T, int]:
    """The object and its version. Raises Problem 404, for another organization's object as for none."""
    state = store.view.get(model, organization_id, id_)
    if state is None:
        raise Problem(404, "not_found", f"there is no {_noun(model)} {id_[:80]}")
    return state, store.view.version(model, organization_id, id_)


def _noun(model: type[CatalogObject]) -> str:
    return {"ApiKey": "API key", "AlertRule": "alert rule", "WebhookEndpoint": "webhook endpoint"}.get(
        model.__name__, model.__name__.lower()
    )


def require_match(if_match: str | None, version: int) -> None:
    """Raises Problem 412 unless If-Match, where sent, names the version. "3", W/"3", 3, * and lists are taken."""
    if if_match is None:
        return
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in if_match.split(",")]
    if "*" not in tags and str(version) not in tags:
        raise Problem(
            412,
            "version_mismatch",
            f"the object is at version {version} now; read it again",
            headers={"ETag": etag(version)},
        )


def etag(version: int) -> str:
    return f'"{version}"'


async def change(
    store: CatalogStore,
    model: type[T],
    organization_id: str,
    id_: str,
    if_match: str | None,
    edit: Callable[[T], T],
) -> tuple[T, int]:
    """Read, edit, write: the object as it is now in force and its version. An edit that changes nothing is not written.

    Raises Problem 404, 409 (archived), 412; what edit raises; CatalogConflict when another writer was first.
    """
    state, version = found(store, model, organization_id, id_)
    require_match(if_match, version)
    edited = edit(state)
    if edited == state:
        return state, version
    if state.archived:
        raise Problem(409, "archived", f"{id_} is archived: it does not change any more")
    await write(store, edited, version)
    return edited, version + 1


def archived(state: T) -> T:
    """The same object, no longer in force."""
    return state.model_copy(update={"archived": True})


def require_unused(store: CatalogStore, state: CatalogObject, now: int) -> None:
    """Raises Problem 409 `in_use` when a subscription that has not ended needs the object."""
    if isinstance(state, ApiKey | WebhookEndpoint):
        return
    view, organization_id, kind = store.view, state.organization_id, kind_of(state)
    for subscription in view.all(Subscription, organization_id):
        if subscription.ends_at is not None and subscription.ends_at <= now:
            continue
        used = {subscription.customer_id, *(view.meters_priced(subscription, now) if kind == "meter" else ())}
        if state.id in used:
            raise field_problem(
                None, "in_use", f"subscription {subscription.id} still uses this {kind}; cancel it first", 409
            )


def require_customer(store: CatalogStore, organization_id: str, customer_id: str) -> Customer:
    """The customer, for a new subscription. Raises Problem 422 when there is none in force."""
    customer = store.view.get(Customer, organization_id, customer_id)
    if customer is None or customer.archived:
        raise field_problem(
            "customer_id", "unknown_reference", f'there is no customer with the ID "{customer_id[:80]}"'
        )
    return customer


def require_sellable(store: CatalogStore, organization_id: str, product_id: str) -> Product:
    """The product, for a new subscription. Raises Problem 422 when there is none in force."""
    product = store.view.get(Product, organization_id, product_id)
    if product is None or product.archived:
        raise field_problem("product_id", "unknown_reference", f'there is no product with the ID "{product_id[:80]}"')
    return product


async def archive_unused(
    store: CatalogStore, model: type[T], organization_id: str, id_: str, if_match: str | None, now: int
) -> tuple[T, int]:
    """Put out of force what no live subscription needs; what is archived already comes back as it is.

    Raises as `change` and `require_unused` do.
    """

    def edit(state: T) -> T:
        if not state.archived:
            require_unused(store, state, now)
        return archived(state)

    return await change(store, model, organization_id, id_, if_match, edit)
