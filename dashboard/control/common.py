"""What the control routes share: parameters, pages, and an object's way into an answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Header, Query, Request, Response
from pydantic import BaseModel, ValidationError

from catalog.record import CatalogObject
from catalog.store import CatalogStore
from dashboard.auth import Principal
from dashboard.objects import Page, changed_fields, fields_of, spec_fields
from dashboard.problems import field_problem, invalid_request
from dashboard.services import services_of
from dashboard.writes import etag

T = TypeVar("T", bound=CatalogObject)
Out = TypeVar("Out", bound=BaseModel)

PAGE_DEFAULT = 50
PAGE_MAX = 500

IfMatch = Annotated[str | None, Header(description='Version from the last ETag, such as "1".')]
IdempotencyKey = Annotated[
    str | None, Header(description="Up to 255 characters. Repeating a key returns the first result.")
]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]
Cursor = Annotated[str | None, Query(max_length=1024, description="next_cursor of the page before")]
Archived = Annotated[bool, Query(description="true to list archived objects instead of active ones")]
Filter = Annotated[str | None, Query(max_length=256)]


def store_of(request: Request) -> CatalogStore:
    return services_of(request).catalog


def matching(request: Request, model: type[T], caller: Principal, shelf: bool, **wanted: str | None) -> list[T]:
    """The caller's objects of a kind, archived or in force, whose fields are as wanted; None: any."""
    return [
        state
        for state in store_of(request).view.all(model, caller.organization_id)
        if state.archived == shelf
        and all(value is None or getattr(state, name) == value for name, value in wanted.items())
    ]


class Identified(Protocol):
    """Anything that lists are made of."""

    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=Identified)


def page_of(
    states: Sequence[Item], limit: int, cursor: str | None, known: Sequence[Identified], *, forgets: bool = False
) -> tuple[list[Item], str | None]:
    """A page of states, newest first, and the cursor of the next one. Both sequences: in the order of their creation.

    known: all that the list ever had, so that a cursor survives when the object that it names leaves the list. forgets:
    the oldest of them are dropped, and with it the cursor's object is all that would follow.
    Raises Problem 422 for a cursor that no page gave.
    """
    newest_first = list(reversed(states))
    if cursor is not None:
        last = _decoded(cursor)
        at = next((i for i, each in enumerate(known) if each.id == last), None)
        if at is None and not (forgets and last):
            raise field_problem("cursor", "invalid_cursor", "this cursor was given by no page of this list")
        older = {each.id for each in known[:at]} if at is not None else set[str]()
        newest_first = [state for state in newest_first if state.id in older]
    page = newest_first[:limit]
    more = limit < len(newest_first)
    return page, base64.urlsafe_b64encode(page[-1].id.encode()).decode() if more else None


def _decoded(cursor: str) -> str | None:
    try:
        return base64.urlsafe_b64decode(cursor.encode()).decode()
    except (binascii.Error, ValueError):
        return None


def shown_page(
    request: Request,
    caller: Principal,
    states: Sequence[T],
    model: type[T],
    limit: int,
    cursor: str | None,
    show: Callable[[T, int], Out],
) -> Page[Out]:
    view = store_of(request).view
    page, following = page_of(states, limit, cursor, view.all(model, caller.organization_id))
    shown = [show(state, view.version(type(state), state.organization_id, state.id)) for state in page]
    return Page(data=shown, next_cursor=following)


def shower(out: type[Out]) -> Callable[[CatalogObject, int], Out]:
    """How a kind is shown: the fields that its Out model takes."""
    return lambda state, version: out.model_validate(fields_of(state, version))


def answered(response: Response, shown: Out, version: int) -> Out:
    response.headers["ETag"] = etag(version)
    return shown


def validated(model: type[Out], fields: dict[str, Any]) -> Out:
    """Raises Problem 422 with every field that is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors(), fields) from None


def patched(spec: type[BaseModel], changes: BaseModel) -> Callable[[T], T]:
    """An edit: the state with the changes, valid as a whole by its spec. It raises Problem 422.

    What was stored before a check was made, and stays as it is, stands in the way of no other change.
    """

    def edit(state: T) -> T:
        before = spec_fields(state, spec)
        after = changed_fields(before, changes)
        kept = _stale(spec, {name: value for name, value in before.items() if after[name] == value})
        valid = validated(spec, {name: value for name, value in after.items() if name not in kept})
        return state.model_copy(update={name: getattr(valid, name) for name in spec.model_fields if name not in kept})

    return edit


def _stale(spec: type[BaseModel], unchanged: dict[str, Any]) -> set[str]:
    """Fields whose stored values the spec takes no more. They all have defaults: no older object lacks them."""
    try:
        spec.model_validate(unchanged)
    except ValidationError as error:
        wrong = {str(each["loc"][0]) for each in error.errors() if each["loc"]}
        return {name for name in wrong & unchanged.keys() if not spec.model_fields[name].is_required()}
    return set()
