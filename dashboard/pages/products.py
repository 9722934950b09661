"""/products: what is sold; an editor of prices that says what N units cost, by the engine that prices invoices."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import TypeAdapter, ValidationError

from dashboard.control.common import patched, validated
from dashboard.objects import AnyPrice, ProductChanges
from dashboard.pages.formats import money, number
from dashboard.pages.forms import NO_ERRORS, Errors, attempted, listed, nested, request_key
from dashboard.pages.rendering import render
from dashboard.pages.session import Form, Session, Visitor
from dashboard.pages.subscription_list import subscription_list
from dashboard.services import services_of
from dashboard.writes import archive_unused, change, create, found, object_id
from pricing.invoice_lines import price_lines
from runtime.clock import now_us
from schemas.currency import CURRENCIES
from schemas.meter import Meter
from schemas.product import PRICES_MAX, TIERS_MAX, Price, Product, ProductSpec, UsagePrice

router = APIRouter(include_in_schema=False)

FIRST_EXAMPLE = "12000"
_PRICE: TypeAdapter[Price] = TypeAdapter(AnyPrice)
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "per_unit": ("meter_id", "unit_amount", "included_units"),
    "graduated": ("meter_id", "tiers", "included_units"),
    "volume": ("meter_id", "tiers", "included_units"),
    "package": ("meter_id", "unit_amount", "package_size", "included_units"),
    "flat_fee": ("amount",),
    "minimum": ("amount",),
}
MODELS = (
    ("per_unit", "Per unit"),
    ("graduated", "Graduated: each tier has its own price"),
    ("volume", "Volume: one price for all units"),
    ("package", "Package: per started package"),
    ("flat_fee", "Flat fee per period"),
    ("minimum", "Minimum per period"),
)


@router.get("/products")
async def products(request: Request, visitor: Visitor) -> Response:
    view = services_of(request).catalog.view
    everything = view.all(Product, visitor.organization_id)
    return render(
        request,
        "products.html",
        visitor,
        products=[product for product in reversed(everything) if not product.archived],
        archived=[product for product in reversed(everything) if product.archived],
        models=dict(MODELS),
        names=_meters(request, visitor),
    )


def _meters(request: Request, visitor: Session) -> dict[str, Meter]:
    view = services_of(request).catalog.view
    return {meter.id: meter for meter in view.all(Meter, visitor.organization_id)}


# -- the editor: a form whose fields are named as the API names them ---------------------------------------------------


def product_fields(form: Mapping[str, str]) -> dict[str, Any]:
    """The form as the API would have it: of each price what its model has, an empty upper bound as no end."""
    tree = nested({name: text.strip() for name, text in form.items()})
    prices = tree.get("prices", [])
    return {
        "name": tree.get("name", ""),
        "currency": tree.get("currency", ""),
        "prices": [_price_fields(price) for price in prices if isinstance(price, dict)],  # pyright: ignore[reportUnknownArgumentType]
        "benefits": listed(tree.get("benefits", "")),
    }


def _price_fields(price: dict[str, Any]) -> dict[str, Any]:
    model = price.get("model", "")
    fields: dict[str, Any] = {"model": model}
    for name in _FIELDS.get(model, ()):
        value = price.get(name, "")
        if name == "tiers":
            tiers: list[dict[str, str]] = value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
            fields[name] = [{"up_to": t.get("up_to") or None, "unit_amount": t.get("unit_amount", "")} for t in tiers]
        elif value or name != "included_units":
            fields[name] = value
    return fields


def edited(form: Mapping[str, str], action: str) -> dict[str, Any]:
    """The editor after a button: add-price, remove-price.N, add-tier.N or remove-tier.N.M."""
    tree = nested(form)
    prices: list[dict[str, Any]] = [price for price in tree.get("prices", []) if isinstance(price, dict)]
    verb, *places = action.split(".")
    at = [int(place) for place in places if place.isdecimal()]
    match verb, at:
        case "add-price", []:
            if len(prices) < PRICES_MAX:
                prices.append({"model": "per_unit"})
        case "remove-price", [index] if index < len(prices):
            del prices[index]
        case "add-tier", [index] if index < len(prices):
            tiers = prices[index].setdefault("tiers", [])
            if len(tiers) < TIERS_MAX:
                tiers.insert(max(0, len(tiers) - 1), {"up_to": "", "unit_amount": ""})
        case "remove-tier", [index, tier] if index < len(prices) and tier < len(prices[index].get("tiers", [])):
            del prices[index]["tiers"][tier]
        case _:
            pass
    for price in prices:
        if price.get("model") in ("graduated", "volume") and not price.get("tiers"):
            price["tiers"] = [{"up_to": "10000", "unit_amount": ""}, {"up_to": "", "unit_amount": ""}]
    return {**tree, "prices": prices}


def example(price: dict[str, Any], currency: str, quantity: str, meters: Mapping[str, Meter]) -> str | None:
    """What a quantity costs by a price as far as it is filled in; None while it is not whole."""
    try:
        parsed = _PRICE.validate_python(_price_fields(price))
        units = Decimal(quantity.replace(",", "") or "0")
    except (ValidationError, InvalidOperation):
        return None
    meter = meters.get(getattr(parsed, "meter_id", ""))
    if (
        not isinstance(parsed, UsagePrice)
        or meter is None
        or not units.is_finite()
        or not 0 <= units < Decimal(10) ** 18
    ):
        return None
    if currency not in CURRENCIES:
        return None
    spec = ProductSpec(name="example", currency=currency, prices=(parsed,))
    total = price_lines(spec, {meter.id: units}, meters={meter.id: meter}).total
    return f"{number(units)} {meter.unit} cost {money(total, currency)}"


def _editor(
    request: Request, visitor: Session, tree: Mapping[str, Any], errors: Errors = NO_ERRORS, status: int = 200
) -> Response:
    meters = _meters(request, visitor)
    currency = str(tree.get("currency", ""))
    quantity = str(tree.get("example", FIRST_EXAMPLE))
    prices = list(tree.get("prices", []))
    return render(
        request,
        "product_editor.html" if request.headers.get("x-part") else "product_new.html",
        visitor,
        status=status,
        values=tree,
        prices=prices,
        examples=[example(price, currency, quantity, meters) for price in prices],
        quantity=quantity,
        errors=errors,
        meters=[meter for meter in meters.values() if not meter.archived],
        currencies=sorted(CURRENCIES),
        models=MODELS,
    )


@router.get("/products/new")
async def new_product(request: Request, visitor: Visitor) -> Response:
    meters = [meter.id for meter in _meters(request, visitor).values() if not meter.archived]
    price: dict[str, Any] = {"model": "graduated", "meter_id": meters[0] if meters else ""}
    price["tiers"] = [
        {"up_to": "10000", "unit_amount": "0.002"},
        {"up_to": "100000", "unit_amount": "0.001"},
        {"up_to": "", "unit_amount": "0.0005"},
    ]
    return _editor(request, visitor, {"currency": "eur", "prices": [price] if meters else []})


@router.post("/products/new")
async def create_product(request: Request, visitor: Visitor, form: Form) -> Response:
    action = form.pop("action", "refresh")
    if action != "save":
        return _editor(request, visitor, edited(form, action))

    async def making() -> Product:
        spec = validated(ProductSpec, product_fields(form))
        product = Product(
            **dict(spec),
            id=object_id("product", visitor.organization_id, request_key(form)),
            organization_id=visitor.organization_id,
            created_at=now_us(),
        )
        return (await create(services_of(request).catalog, product, request_key(form)))[0]

    product, errors, status = await attempted(making())
    if product is None:
        return _editor(request, visitor, edited(form, "refresh"), errors, status)
    return RedirectResponse(f"/products/{product.id}?done=created", 303)


# -- one product -------------------------------------------------------------------------------------------------------


@router.get("/products/{id}")
async def product(
    request: Request, visitor: Visitor, id: str, units: str = FIRST_EXAMPLE, done: str | None = None
) -> Response:
    return _product_page(request, visitor, id, units=units, done=done)


def _product_page(
    request: Request,
    visitor: Session,
    id_: str,
    *,
    units: str = FIRST_EXAMPLE,
    values: Any = None,
    errors: Errors = NO_ERRORS,
    status: int = 200,
    done: str | None = None,
) -> Response:
    services, organization = services_of(request), visitor.organization_id
    product, version = found(services.catalog, Product, organization, id_)
    meters = _meters(request, visitor)
    documents = [price.model_dump(mode="json") for price in product.prices]
    return render(
        request,
        "product.html",
        visitor,
        status=status,
        product=product,
        version=version,
        meters=meters,
        models=dict(MODELS),
        units=units,
        examples=[example(document, product.currency, units, meters) for document in documents],
        values=values or {"name": product.name, "benefits": ", ".join(product.benefits)},
        errors=errors,
        done=done,
        subscriptions=subscription_list(services.catalog.view, organization, now_us(), product_id=id_, limit=20),
    )


@router.post("/products/{id}")
async def change_product(request: Request, visitor: Visitor, form: Form, id: str) -> Response:
    store, organization = services_of(request).catalog, visitor.organization_id

    async def making() -> str:
        if form.get("action") == "archive":
            await archive_unused(store, Product, organization, id, form.get("version"), now_us())
            return "/products"
        fields = {"name": form.get("name", "").strip(), "benefits": listed(form.get("benefits", ""))}
        changes = validated(ProductChanges, fields)
        await change(store, Product, organization, id, form.get("version"), patched(ProductSpec, changes))
        return f"/products/{id}?done=saved"

    target, errors, status = await attempted(making())
    if target is None:
        return _product_page(request, visitor, id, values=form, errors=errors, status=status)
    return RedirectResponse(target, 303)
