"""/api/v1/organization: the caller's own, and no other."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard.auth import Caller
from dashboard.control.common import IfMatch, answered, patched, shower, store_of
from dashboard.objects import OrganizationChanges, OrganizationOut
from dashboard.operator import change_settings
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.services import services_of
from dashboard.writes import found
from schemas.organization import Organization, OrganizationSpec

router = api_router(AdminRoute, "Organization")
_show = shower(OrganizationOut)


@router.get("/organization", responses=problem_responses(404))
async def get_organization(request: Request, response: Response, caller: Caller) -> OrganizationOut:
    organization, version = found(store_of(request), Organization, caller.organization_id, caller.organization_id)
    return answered(response, _show(organization, version), version)


@router.patch("/organization", responses=problem_responses(403, 404, 409, 412, 503))
async def change_organization(
    request: Request, response: Response, caller: Caller, body: OrganizationChanges, if_match: IfMatch = None
) -> OrganizationOut:
    """A new time_zone applies to new subscriptions, and to active ones from their next billing period."""
    edit = patched(OrganizationSpec, body)
    organization, version = await change_settings(
        services_of(request), caller.organization_id, caller.key_id, if_match, edit
    )
    return answered(response, _show(organization, version), version)
