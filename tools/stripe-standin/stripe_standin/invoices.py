"""/v1/invoices.

Source: Stripe API reference, "Invoices". Messages of refusals, what an update of a finalized invoice may change,
and that a deleted draft does not release its items: measured by others against test mode at 2026-08-26.dahlia.
"""

from __future__ import annotations

from stripe_standin import collection, payments, search
from stripe_standin.collection import schedule_draft
from stripe_standin.customers import living
from stripe_standin.errors import ApiError, InvalidParameter, missing, refused
from stripe_standin.invoice_items import ITEMS_MAX, known_rates
from stripe_standin.invoice_view import items, recompute, render, render_line
from stripe_standin.money import DEFAULT_CURRENCY
from stripe_standin.paging import in_range, matching, newest, page
from stripe_standin.params import merged
from stripe_standin.records import Customer, Invoice, InvoiceItem, PaymentIntent, PaymentMethod
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id

PLAIN = ("description", "footer", "statement_descriptor", "custom_fields")
NOT_OPEN = "You can only pass in open invoices. This invoice isn't open."


def _currency(params: Json, customer: Customer) -> str:
    given = params.get("currency")
    currency = str(given).lower() if given else customer.currency or DEFAULT_CURRENCY
    if not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
        raise refused(f"Invalid currency: {currency}", param="currency")
    return currency


def _apply(scope: Scope, invoice: Invoice, params: Json) -> None:
    """Take over what create and update of a draft have in common."""
    for name in PLAIN:
        if name in params:
            setattr(invoice, name, params[name])
    if "metadata" in params:
        invoice.metadata = merged(invoice.metadata, params["metadata"])
    if "default_payment_method" in params:
        invoice.default_payment_method = _method(scope, invoice, params["default_payment_method"])
    if "default_tax_rates" in params:
        invoice.default_tax_rates = known_rates(scope, params["default_tax_rates"], "default_tax_rates")
    if "automatic_tax" in params:
        invoice.automatic_tax = params["automatic_tax"]["enabled"]
        invoice.automatic_tax_status = None
    if invoice.automatic_tax and invoice.default_tax_rates:
        raise refused(
            "You cannot set `default_tax_rates` when `automatic_tax[enabled]=true`.", param="default_tax_rates"
        )
    if params.get("discounts"):
        raise InvalidParameter("The stand-in has no coupons: only an empty discounts is taken.", "discounts")
    if "discounts" in params:
        invoice.discount = None
    if "collection_method" in params:
        invoice.collection_method = params["collection_method"]
    _due(invoice, params)
    if "auto_advance" in params:
        invoice.auto_advance = params["auto_advance"]
    schedule_draft(invoice)


def _due(invoice: Invoice, params: Json) -> None:
    given = params.get("days_until_due") is not None or params.get("due_date") is not None
    if invoice.collection_method == "charge_automatically":
        if given:
            raise refused(
                "You can only specify 'due_date' or 'days_until_due' if invoice collection method is 'send_invoice'."
            )
        invoice.days_until_due = invoice.due_date = None
        return
    if params.get("due_date") is not None:
        invoice.due_date = params["due_date"]
    elif params.get("days_until_due") is not None:
        invoice.days_until_due = params["days_until_due"]
        invoice.due_date = invoice.created + 86400 * params["days_until_due"]
    if invoice.due_date is None:
        raise refused(
            "If invoice collection method is 'send_invoice', you must specify 'due_date' or 'days_until_due'."
        )


def _method(scope: Scope, invoice: Invoice, id_: str | None) -> str | None:
    if id_ is None:
        return None
    method = scope.get(PaymentMethod, id_, "default_payment_method", status=400)
    if method.customer != invoice.customer:
        raise refused(
            f"The customer does not have a payment method with the ID {id_}. The payment method must be attached to "
            "the customer.",
            code="resource_missing",
            param="default_payment_method",
        )
    return id_


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    if params.get("customer") is None:
        raise InvalidParameter("Missing required param: customer.", "customer", "parameter_missing")
    customer = living(scope, params["customer"], "customer", status=400)
    invoice = Invoice(
        id=new_id("in_1"),
        created=scope.now,
        customer=customer.id,
        currency=_currency(params, customer),
        footer=customer.invoice_footer,
        custom_fields=customer.invoice_custom_fields,
        period_start=scope.now,
        period_end=scope.now,
        discount=customer.discount,
    )
    _apply(scope, invoice, params)
    if invoice.collection_method == "send_invoice" and customer.email is None:
        raise refused(
            "Missing email. In order to create invoices that are sent to the customer, the customer must have a valid "
            "email."
        )
    if params.get("pending_invoice_items_behavior") == "include":
        pending = [
            i.id
            for i in scope.children(InvoiceItem, customer.id)
            if i.invoice is None and i.currency == invoice.currency
        ]
        for item in (scope.get(InvoiceItem, id_) for id_ in pending[:ITEMS_MAX]):
            item.invoice = invoice.id
            invoice.items.append(item.id)
            scope.put(item)
    recompute(scope, invoice)
    scope.emit("invoice.created", render(scope, invoice))
    return render(scope, invoice)


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(Invoice, path[0], "invoice"))


def update(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    invoice = scope.get(Invoice, path[0], "id")
    before = render(scope, invoice)
    if invoice.status == "draft":
        _apply(scope, invoice, params)
        recompute(scope, invoice)
    else:
        _update_finalized(scope, invoice, params)
    after = render(scope, invoice)
    changed = {name: value for name, value in before.items() if after[name] != value}
    if changed:
        scope.emit("invoice.updated", after, changed)
    return after


def _update_finalized(scope: Scope, invoice: Invoice, params: Json) -> None:
    allowed = {"metadata", "auto_advance", "default_payment_method"} if invoice.status == "open" else {"metadata"}
    for name in params.keys() - allowed - {"expand"}:
        raise refused("Finalized invoices can't be updated in this way", param=name)
    if "default_payment_method" in params:
        invoice.default_payment_method = _method(scope, invoice, params["default_payment_method"])
    if "metadata" in params:
        invoice.metadata = merged(invoice.metadata, params["metadata"])
    if "auto_advance" in params and params["auto_advance"] != invoice.auto_advance:
        invoice.auto_advance = params["auto_advance"]
        charged = invoice.auto_advance and invoice.collection_method == "charge_automatically"
        wait = scope.settings.first_attempt_seconds
        invoice.next_payment_attempt = scope.now + wait if charged else None
    scope.put(invoice)


def delete(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    invoice = scope.get(Invoice, path[0], "invoice")
    if invoice.status != "draft":
        raise refused("You can only delete draft invoices.")
    last = render(scope, invoice)
    scope.remove(invoice)
    scope.emit("invoice.deleted", last)
    return {"id": invoice.id, "object": "invoice", "deleted": True}


def finalize(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    invoice = scope.get(Invoice, path[0], "id")
    if invoice.status != "draft":
        raise refused(
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.",
            code="invoice_not_editable",
        )
    if "auto_advance" in params:
        invoice.auto_advance = params["auto_advance"]
    collection.finalize(scope, invoice)
    return render(scope, invoice)


def send(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    invoice = scope.get(Invoice, path[0], "invoice")
    if invoice.status not in ("draft", "open"):
        raise refused(
            "This invoice cannot be sent right now. Please contact us via https://support.stripe.com/contact with "
            "details, so we can help."
        )
    if invoice.status == "draft":
        collection.finalize(scope, invoice)
    scope.emit("invoice.sent", render(scope, invoice))
    return render(scope, invoice)


def pay(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    invoice = scope.get(Invoice, path[0], "id")
    if invoice.status == "paid":
        raise refused("Invoice is already paid")
    if invoice.status == "void":
        raise refused("Invoice is voided and can't be paid")
    method = _explicit_method(scope, invoice, params)
    if invoice.status == "draft":
        collection.finalize(scope, invoice, collect=False)
        if invoice.amount_due == 0:
            return render(scope, invoice)
    if params.get("paid_out_of_band"):
        _pay_out_of_band(scope, invoice)
        return render(scope, invoice)
    error = collection.attempt(scope, invoice, automatic=False, method=method)
    if error is not None:
        raise error
    return render(scope, invoice)


def _explicit_method(scope: Scope, invoice: Invoice, params: Json) -> PaymentMethod | None:
    id_ = params.get("payment_method")
    if id_ is None:
        return None
    method = scope.get(PaymentMethod, id_, "payment_method", status=400)
    if method.customer != invoice.customer:
        raise missing(PaymentMethod.NOUN, id_, "payment_method", status=400)
    return method


def _pay_out_of_band(scope: Scope, invoice: Invoice) -> None:
    invoice.amount_paid += invoice.amount_remaining
    invoice.paid_out_of_band = True
    payments.cancel(scope, invoice, "void_invoice")
    collection.paid(scope, invoice)


def void(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    invoice = scope.get(Invoice, path[0], "id")
    if invoice.status == "paid":
        raise refused("Invoices with `paid` payments cannot be voided.")
    if invoice.status not in ("open", "uncollectible"):
        raise refused(NOT_OPEN)
    collection.void(scope, invoice)
    return render(scope, invoice)


def mark_uncollectible(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    invoice = scope.get(Invoice, path[0], "id")
    if invoice.status == "uncollectible":
        raise refused("This invoice has already been marked uncollectible.")
    if invoice.status != "open":
        raise refused(NOT_OPEN)
    collection.mark_uncollectible(scope, invoice)
    return render(scope, invoice)


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    records = scope.all(Invoice)
    if params.get("customer") is not None:
        scope.get(Customer, params["customer"], "customer", status=400)  # not verified: that Stripe refuses it here
        records = scope.children(Invoice, params["customer"])
    same = matching(params, status="status", collection_method="collection_method")

    def matches(invoice: Invoice) -> bool:
        return (
            same(invoice)
            and in_range(invoice.created, params.get("created"))
            and in_range(invoice.due_date, params.get("due_date"))
        )

    return page(newest(records), params, "/v1/invoices", lambda i: render(scope, i), Invoice.NOUN, matches)


def find(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    return search.result(scope, newest(scope.all(Invoice)), params, "/v1/invoices/search", lambda i: render(scope, i))


def list_lines(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    invoice = scope.get(Invoice, path[0], "invoice")
    listing = items(scope, invoice)
    by_line = {item.line_id: item.id for item in listing}
    # A cursor names a line, and the records paged through are items.
    cursors = {n: by_line.get(params[n], params[n]) for n in ("starting_after", "ending_before") if n in params}
    url = f"/v1/invoices/{invoice.id}/lines"
    return page(listing, params | cursors, url, lambda i: render_line(invoice, i), "invoice line item")


def advance(scope: Scope, invoice_id: str) -> None:
    """One step that Stripe takes without a call, if the invoice is still there."""
    invoice = scope.find(Invoice, invoice_id)
    if invoice is not None:
        collection.step(scope, invoice)


def authenticate(scope: Scope, invoice: Invoice, *, success: bool) -> ApiError | None:
    """The customer answers a 3D Secure demand (a control of the stand-in; with Stripe it happens on a page)."""
    intent = scope.get(PaymentIntent, invoice.payment_intent or "", "id")
    if intent.status != "requires_action" or intent.payment_method is None:
        raise refused(f"This PaymentIntent's status is {intent.status}, not requires_action.")
    method = scope.get(PaymentMethod, intent.payment_method)
    if success:
        return collection.attempt(scope, invoice, automatic=False, method=method, authenticated=True)
    message = "The provided PaymentMethod has failed authentication."
    payments.refuse(scope, intent, "payment_intent_authentication_failure", None, message, method, None)
    scope.emit("payment_intent.payment_failed", payments.render_intent(scope, intent))
    scope.emit("invoice.payment_failed", render(scope, invoice))
    return None


_DRAFT = (
    "auto_advance automatic_tax.enabled collection_method custom_fields days_until_due default_payment_method"
    " default_tax_rates description discounts due_date footer metadata statement_descriptor"
)
_PAGED = "limit starting_after ending_before"

ROUTES = (
    Route(
        "POST",
        "/v1/invoices",
        "InvoiceCreateParams",
        f"{_DRAFT} customer currency pending_invoice_items_behavior",
        create,
    ),
    Route(
        "GET",
        "/v1/invoices",
        "InvoiceListParams",
        f"{_PAGED} collection_method created customer due_date status",
        list_all,
    ),
    Route("GET", "/v1/invoices/search", "InvoiceSearchParams", "query limit page", find),
    Route("GET", "/v1/invoices/{}", "InvoiceRetrieveParams", "", retrieve),
    Route("POST", "/v1/invoices/{}", "InvoiceUpdateParams", _DRAFT, update),
    Route("DELETE", "/v1/invoices/{}", "InvoiceDeleteParams", "", delete),
    Route("GET", "/v1/invoices/{}/lines", "InvoiceListLinesParams", _PAGED, list_lines),
    Route("POST", "/v1/invoices/{}/finalize", "InvoiceFinalizeInvoiceParams", "auto_advance", finalize),
    Route("POST", "/v1/invoices/{}/send", "InvoiceSendInvoiceParams", "", send),
    Route("POST", "/v1/invoices/{}/pay", "InvoicePayParams", "payment_method paid_out_of_band off_session", pay),
    Route("POST", "/v1/invoices/{}/void", "InvoiceVoidInvoiceParams", "", void),
    Route("POST", "/v1/invoices/{}/mark_uncollectible", "InvoiceMarkUncollectibleParams", "", mark_uncollectible),
)
