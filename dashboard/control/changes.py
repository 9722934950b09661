"""/api/v1/changes: when each object of the catalog changed last, and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict

from catalog.record import Kind, kind_of
from catalog.view import Versioned
from dashboard.auth import Caller
from dashboard.control.common import PAGE_DEFAULT, Cursor, Limit, page_of, store_of
from dashboard.objects import Instant, Page
from dashboard.routing import AdminRoute, api_router

router = api_router(AdminRoute, "Organization")


class ChangeOut(BaseModel):
    """An object's latest change. by: an API key's id, `dashboard, KEY_ID`, or `COMMAND, USER`; null: not recorded."""

    model_config = ConfigDict(from_attributes=True)

    kind: Kind
    object_id: str
    version: int
    archived: bool
    at: Instant
    by: str | None


@dataclass(frozen=True, slots=True)
class _Item:
    """A change with an id for the list's cursor: objects of two kinds may have one id."""

    id: str
    change: Versioned


@router.get("/changes")
async def list_changes(
    request: Request,
    caller: Caller,
    kind: Annotated[Kind | None, Query(description="only objects of this kind")] = None,
    object_id: Annotated[str | None, Query(max_length=256)] = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
) -> Page[ChangeOut]:
    """Who changed which object last, newest first. The whole history is the topic `catalog`."""
    known = [
        _Item(f"{kind_of(each.state)}/{each.state.id}", each)
        for each in store_of(request).view.changes(caller.organization_id)
    ]
    items = [
        item
        for item in known
        if kind in (None, kind_of(item.change.state)) and object_id in (None, item.change.state.id)
    ]
    page, following = page_of(items, limit, cursor, known)
    return Page(data=[_shown(item.change) for item in page], next_cursor=following)


def _shown(change: Versioned) -> ChangeOut:
    state = change.state
    return ChangeOut(
        kind=kind_of(state),
        object_id=state.id,
        version=change.version,
        archived=state.archived,
        at=change.changed_at,  # pyright: ignore[reportArgumentType]
        by=change.changed_by,
    )
