"""/alerts: what fired, and the rules that decide."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.control.common import validated
from dashboard.pages.alert_list import SHOWN, alert_list, threshold_text
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.services import now_us, services_of
from dashboard.writes import archive_unused, create, object_id
from schemas.alert_rule import AlertRule, AlertRuleSpec
from schemas.customer import Customer
from schemas.decimals import plain
from schemas.meter import Meter

router = APIRouter(include_in_schema=False)


def _page(request: Request, visitor: Session, values: Any, errors: Errors = NO_ERRORS, status: int = 200) -> Response:
    services, organization = services_of(request), visitor.organization_id
    view = services.catalog.view
    meters = {meter.id: meter for meter in view.all(Meter, organization)}
    rules = [rule for rule in reversed(view.all(AlertRule, organization)) if not rule.archived]
    lines = [
        (
            rule,
            meters.get(rule.meter_id),
            rule.customer_id and view.get(Customer, organization, rule.customer_id),
            threshold_text(rule.kind, plain(rule.threshold), _unit(meters.get(rule.meter_id))),
        )
        for rule in rules
    ]
    return render(
        request,
        "alerts.html",
        visitor,
        status=status,
        alerts=alert_list(services, organization, SHOWN),
        rules=lines,
        meters=[meter for meter in meters.values() if not meter.archived],
        values=values,
        errors=errors,
    )


def _unit(meter: Meter | None) -> str:
    return meter.unit if meter else ""


@router.get("/alerts")
async def alerts(request: Request, visitor: Visitor) -> Response:
    return _page(request, visitor, {"kind": "quantity"})


@router.post("/alerts/rules")
async def create_rule(request: Request, visitor: Visitor, form: Form) -> Response:
    store = services_of(request).catalog

    async def making() -> AlertRule:
        spec = validated(AlertRuleSpec, filled(form))
        rule = AlertRule(
            **dict(spec),
            id=object_id("alert_rule", visitor.organization_id, None),
            organization_id=visitor.organization_id,
            created_at=now_us(),
        )
        return (await create(store, rule, None))[0]

    rule, errors, status = await attempted(making())
    if rule is None:
        return _page(request, visitor, form, errors, status)
    return RedirectResponse("/alerts", 303)


@router.post("/alerts/rules/{id}")
async def archive_rule(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    store = services_of(request).catalog
    archiving = archive_unused(store, AlertRule, visitor.organization_id, id, None, now_us())
    _, errors, status = await attempted(archiving)
    if errors:
        return _page(request, visitor, {"kind": "quantity"}, errors, status)
    return RedirectResponse("/alerts", 303)
