"""/alerts: what fired, the rules that decide, and where it is sent to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from dashboard.control.common import validated
from dashboard.control.webhook_deliveries import send_again
from dashboard.control.webhook_endpoints import make_endpoint
from dashboard.pages.alert_list import SHOWN, alert_list, threshold_text
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.services import Services, now_us, services_of
from dashboard.writes import archive_unused, create, object_id
from schemas.alert_rule import AlertRule, AlertRuleSpec
from schemas.customer import Customer
from schemas.decimals import plain
from schemas.meter import Meter
from schemas.webhook_delivery import Attempt, WebhookDelivery
from schemas.webhook_endpoint import WebhookEndpoint, WebhookEndpointSpec

router = APIRouter(include_in_schema=False)
DELIVERIES_SHOWN = 100


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """A delivery as it is listed. url: None where its endpoint is not known any more. last: its newest attempt."""

    delivery: WebhookDelivery
    url: str | None
    customer: str
    last: Attempt | None


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
    store = services_of(request).catalog

    async def making() -> AlertRule:
        spec = validated(AlertRuleSpec, filled(form))
        rule = AlertRule(
            **dict(spec),
            id=object_id("alert_rule", visitor.organization_id, request_key(form)),
            organization_id=visitor.organization_id,
            created_at=now_us(),
        )
        return (await create(store, rule, request_key(form)))[0]

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
