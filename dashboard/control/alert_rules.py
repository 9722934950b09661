"""/api/v1/alert-rules: when a merchant wants to be told."""

from __future__ import annotations

from fastapi import Request, Response

from dashboard.auth import Caller
from dashboard.control.common import (
    PAGE_DEFAULT,
    Archived,
    Cursor,
    Filter,
    IdempotencyKey,
    IfMatch,
    Limit,
    answered,
    matching,
    shower,
    shown_page,
    store_of,
)
from dashboard.objects import AlertRuleOut, Page
from dashboard.problems import problem_responses
from dashboard.routing import AdminRoute, api_router
from dashboard.services import now_us
from dashboard.writes import archive_unused, create, found, object_id
from schemas.alert_rule import AlertRule, AlertRuleSpec

router = api_router(AdminRoute, "Alerts")
_show = shower(AlertRuleOut)


@router.post("/alert-rules", status_code=201, responses=problem_responses(409))
async def create_alert_rule(
    request: Request, response: Response, caller: Caller, body: AlertRuleSpec, idempotency_key: IdempotencyKey = None
) -> AlertRuleOut:
    alert_rule = AlertRule(
        **dict(body),
        id=object_id("alert_rule", caller.organization_id, idempotency_key),
        organization_id=caller.organization_id,
        created_at=now_us(),
    )
    alert_rule, version = await create(store_of(request), alert_rule, idempotency_key)
    return answered(response, _show(alert_rule, version), version)


@router.get("/alert-rules")
async def list_alert_rules(
    request: Request,
    caller: Caller,
    meter_id: Filter = None,
    customer_id: Filter = None,
    limit: Limit = PAGE_DEFAULT,
    cursor: Cursor = None,
    archived: Archived = False,
) -> Page[AlertRuleOut]:
    alert_rules = matching(request, AlertRule, caller, archived, meter_id=meter_id, customer_id=customer_id)
    return shown_page(store_of(request), alert_rules, limit, cursor, _show)


@router.get("/alert-rules/{id}", responses=problem_responses(404))
async def get_alert_rule(request: Request, response: Response, caller: Caller, id: str) -> AlertRuleOut:
    alert_rule, version = found(store_of(request), AlertRule, caller.organization_id, id)
    return answered(response, _show(alert_rule, version), version)


@router.delete("/alert-rules/{id}", responses=problem_responses(404, 409, 412))
async def archive_alert_rule(
    request: Request, response: Response, caller: Caller, id: str, if_match: IfMatch = None
) -> AlertRuleOut:
    alert_rule, version = await archive_unused(
        store_of(request), AlertRule, caller.organization_id, id, if_match, now_us()
    )
    return answered(response, _show(alert_rule, version), version)
