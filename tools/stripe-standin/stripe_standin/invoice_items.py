"""/v1/invoiceitems: what invoices charge for.

Source: Stripe API reference, "Invoice Items". Measured by others against test mode: an item made with `amount`
gets a price and a product of its own; a pending item's period is its creation; lists are newest first.
Not implemented, and refused by name: pricing (prices kept at Stripe), discounts, subscriptions. The stand-in has no
products: the product that a price_data names is taken as it is.
"""

from __future__ import annotations

from decimal import Decimal

from stripe_standin.customers import living
from stripe_standin.errors import InvalidParameter, refused
from stripe_standin.invoice_view import plain, pricing, recompute
from stripe_standin.money import DEFAULT_CURRENCY
from stripe_standin.paging import in_range, matching, newest, page
from stripe_standin.params import merged
from stripe_standin.records import Customer, Invoice, InvoiceItem, TaxRate
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id
from stripe_standin.tax_rates import render as render_rate
from stripe_standin.totals import whole

ITEMS_MAX = 250
"""Per invoice."""


def render(scope: Scope, item: InvoiceItem) -> Json:
    return {
        "id": item.id,
        "object": "invoiceitem",
        "amount": item.amount,
        "currency": item.currency,
        "customer": item.customer,
        "customer_account": None,
        "date": item.created,
        "description": item.description,
        "discountable": item.discountable,
        "discounts": [],
        "invoice": item.invoice,
        "livemode": False,
        "metadata": item.metadata,
        "net_amount": item.amount,
        "parent": None,
        "period": {"end": item.period_end, "start": item.period_start},
        "pricing": pricing(item),
        "proration": False,
        "quantity": int(item.quantity),
        "quantity_decimal": plain(item.quantity),
        "tax_rates": [render_rate(scope, scope.shown(TaxRate, id_)) for id_ in item.tax_rates],
        "test_clock": None,
    }


def draft(scope: Scope, id_: str) -> Invoice:
    """The invoice that an item is meant for. Raises ApiError when it does not exist or can't change any more."""
    invoice = scope.get(Invoice, id_, "invoice", status=400)
    if invoice.status != "draft":
        raise refused("This invoice is no longer editable", code="invoice_not_editable", param="invoice")
    return invoice


def known_rates(scope: Scope, ids: list[str] | None, param: str) -> list[str]:
    for id_ in ids or ():
        if not scope.get(TaxRate, id_, param, status=400).active:
            raise refused(f"Tax rate {id_} is inactive.", param=param)
    return ids or []


def _price(params: Json) -> tuple[Decimal, Decimal, int]:
    """(quantity, unit amount, amount in minor units). Raises InvalidParameter."""
    if "quantity" in params and "quantity_decimal" in params:
        raise InvalidParameter("You may only specify one of these parameters: quantity, quantity_decimal.", "quantity")
    quantity = Decimal(params.get("quantity", params.get("quantity_decimal", 1)))
    if quantity < 0:
        raise InvalidParameter("Invalid non-negative integer", "quantity", "parameter_invalid_integer")
    unit = _unit_amount(params)
    if unit is None:
        if params.get("amount") is None:
            raise InvalidParameter("Missing required param: amount.", "amount", "parameter_missing")
        if "quantity" in params or "quantity_decimal" in params:
            raise InvalidParameter("You may only specify one of these parameters: amount, quantity.", "amount")
        return Decimal(1), Decimal(params["amount"]), params["amount"]
    return quantity, unit, whole(quantity * unit)


def _unit_amount(params: Json) -> Decimal | None:
    """The amount of one unit in minor units, None when the whole amount is given. Raises InvalidParameter."""
    ways = [name for name in ("amount", "price_data", "unit_amount_decimal") if name in params]
    if len(ways) > 1:
        raise InvalidParameter(f"You may only specify one of these parameters: {', '.join(ways)}.", ways[0])
    priced: Json = params.get("price_data") or params
    if "unit_amount" in priced and "unit_amount_decimal" in priced:
        message = "You may only specify one of these parameters: unit_amount, unit_amount_decimal."
        raise InvalidParameter(message, "price_data[unit_amount]")
    unit = priced.get("unit_amount_decimal", priced.get("unit_amount"))
    if unit is None:
        if "price_data" in params:
            raise InvalidParameter(
                "Missing required param: price_data[unit_amount].", "price_data[unit_amount]", "parameter_missing"
            )
        return None
    exponent = Decimal(unit).as_tuple().exponent
    if not (isinstance(exponent, int) and exponent >= -12):
        raise InvalidParameter("Invalid decimal: at most 12 decimal places are allowed", "unit_amount_decimal")
    return Decimal(unit)


def _period(params: Json, now: int) -> tuple[int, int]:
    period = params.get("period")
    if period is None:
        return now, now
    if period["start"] > period["end"]:
        raise InvalidParameter("`period.start` must be before `period.end`", "period")
    return period["start"], period["end"]


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    invoice = None if params.get("invoice") is None else draft(scope, params["invoice"])
    customer_id = params.get("customer") or (None if invoice is None else invoice.customer)
    if customer_id is None:
        raise InvalidParameter("Missing required param: customer.", "customer", "parameter_missing")
    customer = living(scope, customer_id, "customer", status=400)
    if invoice is not None and invoice.customer != customer.id:
        raise refused(f"Invoice {invoice.id} does not belong to customer {customer.id}.", param="invoice")
    quantity, unit, amount = _price(params)
    currency = _currency(params, customer, invoice)
    start, end = _period(params, scope.now)
    if invoice is not None and len(invoice.items) >= ITEMS_MAX:
        raise refused(f"Invoices can have at most {ITEMS_MAX} invoice items.", param="invoice")
    item = InvoiceItem(
        id=new_id("ii_1"),
        created=scope.now,
        customer=customer.id,
        invoice=None if invoice is None else invoice.id,
        line_id=new_id("il_1"),
        currency=currency,
        amount=amount,
        quantity=quantity,
        unit_amount=unit,
        product=(params.get("price_data") or {}).get("product") or new_id("prod_", 14),
        price=new_id("price_1"),
        description=params.get("description"),
        period_start=start,
        period_end=end,
        discountable=params.get("discountable", amount >= 0),
        metadata=merged({}, params.get("metadata")),
        tax_rates=known_rates(scope, params.get("tax_rates"), "tax_rates"),
        tax_behavior=params.get("tax_behavior", "unspecified"),
    )
    scope.put(item)
    if invoice is not None:
        invoice.items.append(item.id)
        recompute(scope, invoice)
    scope.emit("invoiceitem.created", render(scope, item))
    return render(scope, item)


def _currency(params: Json, customer: Customer, invoice: Invoice | None) -> str:
    given = params.get("currency") or (params.get("price_data") or {}).get("currency")
    currency = str(given).lower() if given else None
    if currency is not None and not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
        raise refused(f"Invalid currency: {currency}", param="currency")
    if invoice is not None:
        if currency not in (None, invoice.currency):
            raise refused(
                f"The currency of the invoice item ({currency}) must match that of the invoice ({invoice.currency}).",
                param="currency",
            )
        return invoice.currency
    return currency or customer.currency or DEFAULT_CURRENCY


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(InvoiceItem, path[0], "id"))


def _changeable(scope: Scope, id_: str) -> tuple[InvoiceItem, Invoice | None]:
    item = scope.get(InvoiceItem, id_, "id")
    if item.invoice is None:
        return item, None
    invoice = scope.find(Invoice, item.invoice)
    if invoice is None:
        raise refused("This invoice item has been deleted.")
    if invoice.status != "draft":
        raise refused(
            "This invoice item is attached to an invoice that is no longer editable.", code="invoice_not_editable"
        )
    return item, invoice


def update(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    item, invoice = _changeable(scope, path[0])
    if {"amount", "quantity", "quantity_decimal", "unit_amount_decimal", "price_data"} & params.keys():
        item.quantity, item.unit_amount, item.amount = _price(params)
    if "description" in params:
        item.description = params["description"]
    if "discountable" in params:
        item.discountable = params["discountable"]
    if "period" in params:
        item.period_start, item.period_end = _period(params, scope.now)
    if "metadata" in params:
        item.metadata = merged(item.metadata, params["metadata"])
    if "tax_rates" in params:
        item.tax_rates = known_rates(scope, params["tax_rates"], "tax_rates")
    if "tax_behavior" in params:
        item.tax_behavior = params["tax_behavior"]
    scope.put(item)
    if invoice is not None:
        recompute(scope, invoice)
    return render(scope, item)


def delete(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    item, invoice = _changeable(scope, path[0])
    scope.remove(item)
    if invoice is not None:
        invoice.items.remove(item.id)
        recompute(scope, invoice)
    scope.emit("invoiceitem.deleted", render(scope, item))
    return {"id": item.id, "object": "invoiceitem", "deleted": True}


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    records = scope.all(InvoiceItem)
    if params.get("customer") is not None:
        records = scope.children(InvoiceItem, params["customer"])
    if params.get("invoice") is not None:
        found = scope.peek(Invoice, params["invoice"])
        records = [] if found is None else [scope.shown(InvoiceItem, id_) for id_ in found.items]
    same = matching(params, customer="customer")
    pending = params.get("pending")

    def matches(item: InvoiceItem) -> bool:
        wanted = pending is None or pending is (item.invoice is None)
        return wanted and same(item) and in_range(item.created, params.get("created"))

    return page(newest(records), params, "/v1/invoiceitems", lambda i: render(scope, i), InvoiceItem.NOUN, matches)


_PRICED = (
    "amount quantity quantity_decimal unit_amount_decimal price_data.currency price_data.product"
    " price_data.unit_amount price_data.unit_amount_decimal description discountable period metadata tax_rates"
    " tax_behavior"
)

ROUTES = (
    Route("POST", "/v1/invoiceitems", "InvoiceItemCreateParams", f"{_PRICED} customer invoice currency", create),
    Route(
        "GET",
        "/v1/invoiceitems",
        "InvoiceItemListParams",
        "customer invoice pending created limit starting_after ending_before",
        list_all,
    ),
    Route("GET", "/v1/invoiceitems/{}", "InvoiceItemRetrieveParams", "", retrieve),
    Route("POST", "/v1/invoiceitems/{}", "InvoiceItemUpdateParams", _PRICED, update),
    Route("DELETE", "/v1/invoiceitems/{}", "InvoiceItemDeleteParams", "", delete),
)
