"""/subscriptions: customer × product, begun, changed and ended."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from whenever import PlainDateTime

from dashboard import subscriptions as lifecycle
from dashboard.control.common import validated
from dashboard.customer_changes import require_reachable
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, filled, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor, organization_of
from dashboard.pages.subscription_list import subscription_line, subscription_list
from dashboard.problems import field_problem
from dashboard.services import services_of
from dashboard.writes import change, create, found, object_id, require_customer, require_sellable
from runtime.clock import now_us
from runtime.problem import Problem
from schemas.customer import Customer
from schemas.period import format_rfc3339
from schemas.product import Product
from schemas.subscription import CancelRequest, Subscription, SubscriptionSpec

router = APIRouter(include_in_schema=False)


@router.get("/subscriptions")
async def subscriptions(request: Request, visitor: Visitor) -> Response:
    view, now = services_of(request).catalog.view, now_us()
    lines = subscription_list(view, visitor.organization_id, now)
    count = len(view.all(Subscription, visitor.organization_id))
    return render(request, "subscriptions.html", visitor, lines=lines, count=count)


def _form_page(
    request: Request, visitor: Session, values: Any, errors: Errors = NO_ERRORS, status: int = 200
) -> Response:
    view, organization = services_of(request).catalog.view, visitor.organization_id
    customers = [each for each in view.all(Customer, organization) if not each.archived]
    products = [each for each in view.all(Product, organization) if not each.archived]
    return render(
        request,
        "subscription_new.html",
        visitor,
        status=status,
        customers=customers,
        products=products,
        values=values,
        errors=errors,
    )


@router.get("/subscriptions/new")
async def new_subscription(request: Request, visitor: Visitor, customer_id: str = "", product_id: str = "") -> Response:
    return _form_page(request, visitor, {"customer_id": customer_id, "product_id": product_id})


def local_start(text: str | None, zone: str) -> str | None:
    """The form's local date and time as an instant. Raises Problem 422."""
    if not text:
        return None
    try:
        local = PlainDateTime.parse_iso(text if len(text) > len("2026-01-01") else f"{text}T00:00")
    except ValueError:
        raise field_problem("started_at", "timestamp_invalid", "a date, or a date and time, is expected") from None
    return local.assume_tz(zone).to_instant().format_iso()


@router.post("/subscriptions/new")
async def create_subscription(request: Request, visitor: Visitor, form: Form) -> Response:
    store, organization_id, now = services_of(request).catalog, visitor.organization_id, now_us()
    zone = organization_of(request, visitor).time_zone

    async def making() -> Subscription:
        fields = {**filled(form), "started_at": local_start(form.get("started_at"), zone)}
        spec = validated(SubscriptionSpec, fields)
        require_reachable(require_customer(store, organization_id, spec.customer_id), spec.collection_method)
        require_sellable(store, organization_id, spec.product_id)
        subscription = lifecycle.begun(
            spec,
            subscription_id=object_id("subscription", organization_id, request_key(form)),
            organization_id=organization_id,
            time_zone=zone,
            now=now,
        )
        lifecycle.require_billed_from(subscription, now)
        lifecycle.require_backdate(subscription, backdate=spec.backdate, now=now)
        return (await create(store, subscription, request_key(form)))[0]

    subscription, errors, status = await attempted(making())
    if subscription is None:
        return _form_page(request, visitor, form, errors, status)
    return RedirectResponse(f"/subscriptions/{subscription.id}?done=created", 303)


@router.get("/subscriptions/{id}")
async def subscription(request: Request, visitor: Visitor, id: str, done: str | None = None) -> Response:
    return _subscription_page(request, visitor, id, done=done)


def _subscription_page(
    request: Request,
    visitor: Session,
    id_: str,
    *,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    done: str | None = None,
) -> Response:
    store, organization, now = services_of(request).catalog, visitor.organization_id, now_us()
    subscription, version = found(store, Subscription, organization, id_)
    names = {product.id: product for product in store.view.all(Product, organization)}
    return render(
        request,
        "subscription.html",
        visitor,
        status=status,
        line=subscription_line(store.view, subscription, now),
        version=version,
        next_start=lifecycle.next_cycle_start(subscription, now),
        names=names,
        others=[product for product in names.values() if not product.archived],
        rfc3339=format_rfc3339,
        errors=errors,
        done=done,
    )


@router.post("/subscriptions/{id}")
async def change_subscription(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    store, organization, now = services_of(request).catalog, visitor.organization_id, now_us()

    def edit(subscription: Subscription) -> Subscription:
        if form.get("action") == "cancel":
            request_ = validated(CancelRequest, {"at": form.get("at", "now")})
            return lifecycle.cancelled(subscription, request_.at, now)
        product_id = form.get("product_id", "")
        require_sellable(store, organization, product_id)
        try:
            return lifecycle.changed(subscription, product_id, now)
        except lifecycle.AlreadyEnded as error:
            raise Problem(409, "already_ended", str(error)) from None

    _, errors, status = await attempted(change(store, Subscription, organization, id, form.get("version"), edit))
    if errors:
        return _subscription_page(request, visitor, id, errors=errors, status=status)
    return RedirectResponse(f"/subscriptions/{id}?done=saved", 303)
