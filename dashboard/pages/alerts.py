"""/alerts: what fired, the rules that decide, and where it is sent to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.control.alert_rules import new_rule_tried
from dashboard.control.common import validated
from dashboard.control.webhook_deliveries import send_again
from dashboard.control.webhook_endpoints import make_endpoint
from dashboard.pages.alert_list import SHOWN, alert_list, threshold_text
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.services import Services, services_of
from dashboard.writes import archive_unused, create, object_id
from runtime.clock import now_us
from schemas.alert_rule import AlertRule, AlertRuleSpec
from schemas.customer import Customer
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.webhook_delivery import Attempt, WebhookDelivery
from schemas.webhook_endpoint import WebhookEndpoint, WebhookEndpointSpec

router = APIRouter(include_in_schema=False)
DELIVERIES_SHOWN = 100
_ANSWERED = "answered"
"""Field of the page that asks whether customers above the threshold are alerted too."""


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """A delivery as it is listed. url: None where its endpoint is not known any more. last: its newest attempt."""

    delivery: WebhookDelivery
    url: str | None
    customer: str
    last: Attempt | None


@dataclass(frozen=True, slots=True)
class _NewRule:
    """A rule that is created, or is to be asked about. reached: customers above already; None: not known now."""

    rule: AlertRule
    reached: int | None
    is_created: bool


def _page(
    request: Request,
    visitor: Session,
    values: Any,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    made: WebhookEndpoint | None = None,
) -> Response:
    """made: an endpoint whose secret is shown, now and never again."""
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
        endpoints=[each for each in reversed(view.all(WebhookEndpoint, organization)) if not each.archived],
        deliveries=_deliveries(services, organization),
        made=made,
    )


def _deliveries(services: Services, organization_id: str) -> list[DeliveryLine]:
    view = services.catalog.view
    lines: list[DeliveryLine] = []
    for delivery in services.live.view.deliveries(organization_id)[:DELIVERIES_SHOWN]:
        endpoint = view.get(WebhookEndpoint, organization_id, delivery.endpoint_id)
        customer = view.get(Customer, organization_id, delivery.customer_id)
        name = customer.name if customer else delivery.customer_id
        last = delivery.attempts[-1] if delivery.attempts else None
        lines.append(DeliveryLine(delivery, endpoint and endpoint.url, name, last))
    return lines


@router.get("/live/deliveries")
async def live_deliveries(request: Request, visitor: Visitor) -> Response:
    """The list alone, for a page that is open."""
    lines = _deliveries(services_of(request), visitor.organization_id)
    return render(request, "live_deliveries.html", visitor, deliveries=lines)


def _unit(meter: Meter | None) -> str:
    return meter.unit if meter else ""


@router.get("/alerts")
async def alerts(request: Request, visitor: Visitor) -> Response:
    return _page(request, visitor, {"kind": "quantity"})


@router.post("/alerts/rules")
async def create_rule(request: Request, visitor: Visitor, form: Form) -> Response:
    """Where customers have reached the threshold already, or that is not known, ask first whether to alert them."""
    services = services_of(request)
    fields = filled(form)
    is_answered = fields.pop(_ANSWERED, None) is not None

    async def making() -> _NewRule:
        rule = AlertRule(
            **dict(validated(AlertRuleSpec, fields)),
            id=object_id("alert_rule", visitor.organization_id, request_key(form)),
            organization_id=visitor.organization_id,
            created_at=now_us(),
        )
        is_made = services.catalog.view.get(AlertRule, visitor.organization_id, rule.id) is not None
        if not is_answered and not is_made:  # the same form sent twice is not asked about what it has made
            reached = new_rule_tried(services, rule, rule.created_at).customers_reached
            if reached != 0:
                return _NewRule(rule, reached, is_created=False)
        return _NewRule((await create(services.catalog, rule, request_key(form)))[0], 0, is_created=True)

    new, errors, status = await attempted(making())
    if new is None:
        return _page(request, visitor, form, errors, status)
    if not new.is_created:
        return _question(request, visitor, form, new.rule, new.reached)
    return RedirectResponse("/alerts", 303)


def _question(
    request: Request, visitor: Session, form: dict[str, str], rule: AlertRule, reached: int | None
) -> Response:
    """A page whose form has every field of the first one, and the answer."""
    view = services_of(request).catalog.view
    meter = view.get(Meter, visitor.organization_id, rule.meter_id)
    return render(
        request,
        "alert_rule_question.html",
        visitor,
        fields={**form, _ANSWERED: "1"},
        meter=meter.name if meter else rule.meter_id,
        threshold=threshold_text(rule.kind, plain(rule.threshold), _unit(meter)),
        customer=rule.customer_id and view.get(Customer, visitor.organization_id, rule.customer_id),
        reached=reached,
    )


@router.post("/alerts/rules/{id}")
async def archive_rule(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    store = services_of(request).catalog
    archiving = archive_unused(store, AlertRule, visitor.organization_id, id, None, now_us())
    _, errors, status = await attempted(archiving)
    if errors:
        return _page(request, visitor, {"kind": "quantity"}, errors, status)
    return RedirectResponse("/alerts", 303)


@router.post("/alerts/endpoints")
async def create_endpoint(request: Request, visitor: Visitor, form: Form) -> Response:
    """The secret is in this answer and nowhere else: it is a page to read, not one to go back to."""

    async def making() -> WebhookEndpoint:
        spec = validated(WebhookEndpointSpec, filled(form))
        return (await make_endpoint(services_of(request), visitor.organization_id, spec, request_key(form)))[0]

    endpoint, errors, status = await attempted(making())
    values = form if endpoint is None else {}
    return _page(request, visitor, {"kind": "quantity", **values}, errors, status, endpoint)


@router.post("/alerts/endpoints/{id}")
async def archive_endpoint(request: Request, visitor: Visitor, _: Form, id: str) -> Response:
    store = services_of(request).catalog
    archiving = archive_unused(store, WebhookEndpoint, visitor.organization_id, id, None, now_us())
    _none, errors, status = await attempted(archiving)
    if errors:
        return _page(request, visitor, {"kind": "quantity"}, errors, status)
    return RedirectResponse("/alerts#endpoints", 303)


@router.post("/alerts/deliveries/{id}")
async def retry_delivery(request: Request, visitor: Visitor, _: Form, id: str) -> Response:
    _none, errors, status = await attempted(send_again(services_of(request), visitor.organization_id, id))
    if errors:
        return _page(request, visitor, {"kind": "quantity"}, errors, status)
    return RedirectResponse("/alerts#deliveries", 303)
