"""/api/v1/alert-rules: when a merchant wants to be told."""

from __future__ import annotations

from fastapi import Request, Response

from catalog.record import CatalogRecord
from dashboard.alert_counts import customers_reached
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
from dashboard.objects import AlertRuleOut, NewAlertRuleOut, Page, fields_of
from dashboard.problems import problem_responses, refusal_problem
from dashboard.routing import AdminRoute, api_router
from dashboard.services import Services, services_of
from dashboard.writes import archive_unused, create, found, object_id
from runtime.clock import now_us
from schemas.alert_rule import AlertRule, AlertRuleSpec

router = api_router(AdminRoute, "Alerts")
_show = shower(AlertRuleOut)


def new_rule_shown(services: Services, rule: AlertRule, version: int, now: int) -> NewAlertRuleOut:
    """The rule, and how many customers have reached its threshold already."""
    live = services.live
    count = None if live.check() else customers_reached(services.catalog.view, live.view, rule, now)
    return NewAlertRuleOut.model_validate({**fields_of(rule, version), "customers_reached": count})


def new_rule_tried(services: Services, rule: AlertRule, now: int) -> NewAlertRuleOut:
    """What would be created (version 0); nothing is. Raises Problem when the catalog would not take it."""
    if refusal := services.catalog.view.refusal(CatalogRecord(rule, 0, now)):
        raise refusal_problem(refusal)
    return new_rule_shown(services, rule, 0, now)


@router.post(
    "/alert-rules",
    status_code=201,
    responses={200: {"model": NewAlertRuleOut, "description": "what would be created"}, **problem_responses(409)},
)
async def create_alert_rule(
    request: Request,
    response: Response,
    caller: Caller,
    body: AlertRuleSpec,
    idempotency_key: IdempotencyKey = None,
    dry_run: bool = False,
) -> NewAlertRuleOut:
    """With dry_run nothing is created: 200, the rule as it would be (version 0), and whom it finds above already.

    Those are not sent to webhooks, but with `alert_existing`; nor are cycles that are over, but with `past_cycles`.
    """
    services, now = services_of(request), now_us()
    alert_rule = AlertRule(
        **dict(body),
        id=object_id("alert_rule", caller.organization_id, idempotency_key),
        organization_id=caller.organization_id,
        created_at=now,
    )
    if dry_run:
        response.status_code = 200
        return new_rule_tried(services, alert_rule, now)
    alert_rule, version = await create(services.catalog, alert_rule, idempotency_key)
    return answered(response, new_rule_shown(services, alert_rule, version, now), version)


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
    return shown_page(request, caller, alert_rules, AlertRule, limit, cursor, _show)


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
