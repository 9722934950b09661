"""/settings: the organization, and how the parts of the system are."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any
from zoneinfo import available_timezones

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard import operator
from dashboard.control.common import patched, validated
from dashboard.objects import OrganizationChanges
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, listed
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.services import Services, services_of
from dashboard.writes import found
from runtime.health import failing
from schemas.organization import Organization, OrganizationSpec

router = APIRouter(include_in_schema=False)


@lru_cache
def zones() -> list[str]:
    """Every time zone that may be chosen."""
    return sorted(available_timezones())


def _health(services: Services) -> list[tuple[str, str | None]]:
    """What pages rest on, and why it is not well; None: it is. Blocks for a moment."""
    reasons = failing(services.checks)
    return [(name, reasons.get(name)) for name in sorted(services.checks)]


async def _page(
    request: Request,
    visitor: Session,
    values: Any = None,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    done: str | None = None,
) -> Response:
    services = services_of(request)
    organization, version = found(services.catalog, Organization, visitor.organization_id, visitor.organization_id)
    current = {
        "name": organization.name,
        "time_zone": organization.time_zone,
        "late_policy": organization.late_policy,
        "invoice_approval": organization.invoice_approval,
        "grace_seconds": "" if organization.grace_seconds is None else str(organization.grace_seconds),
        "tax_mode": organization.tax_mode,
        "tax_rates": ", ".join(organization.tax_rates),
        "stripe_account_id": organization.stripe_account_id or "",
    }
    return render(
        request,
        "settings.html",
        visitor,
        status=status,
        version=version,
        values=values or current,
        errors=errors,
        done=done,
        operator=operator.is_operator(services, visitor.organization_id, visitor.key_id),
        zones=zones(),
        default_grace=services.settings.close_grace_seconds,
        checks=await asyncio.to_thread(_health, services),
    )


@router.get("/settings")
async def settings(request: Request, visitor: Visitor, done: str | None = None) -> Response:
    return await _page(request, visitor, done=done)


@router.post("/settings")
async def change_settings(request: Request, visitor: Visitor, form: Form) -> Response:
    organization = visitor.organization_id

    async def making() -> None:
        fields: dict[str, Any] = {
            "name": form.get("name", ""),
            "time_zone": form.get("time_zone", ""),
            "late_policy": form.get("late_policy", ""),
            "invoice_approval": form.get("invoice_approval", ""),
            "grace_seconds": form.get("grace_seconds", "").strip() or None,
            "tax_mode": form.get("tax_mode", ""),
            "tax_rates": listed(form.get("tax_rates", "")),
        }
        if "stripe_account_id" in form:
            fields["stripe_account_id"] = form["stripe_account_id"].strip() or None
        edit = patched(OrganizationSpec, validated(OrganizationChanges, fields))
        await operator.change_settings(services_of(request), organization, visitor.key_id, form.get("version"), edit)

    _, errors, status = await attempted(making())
    if errors:
        # Of one of several tax rates: the message names it.
        of_fields: dict[str, str] = {}
        for name, message in errors.items():
            of_fields.setdefault(name.partition(".")[0], message)
        return await _page(request, visitor, form, of_fields, status)
    return RedirectResponse("/settings?done=saved", 303)
