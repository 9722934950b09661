"""/v1/customers, their tax ids, discount and the transactions of their balance.

Source: Stripe API reference, "Customers", "Customer tax IDs", "Discounts", "Customer balance transactions".
"""

from __future__ import annotations

import re
import secrets
from decimal import Decimal
from typing import Any

from stripe_standin import payment_methods, search
from stripe_standin.errors import refused
from stripe_standin.money import DEFAULT_CURRENCY
from stripe_standin.paging import in_range, listed, matching, newest, page
from stripe_standin.params import merged
from stripe_standin.records import BalanceTransaction, Customer, Discount, PaymentMethod, TaxId
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id

ADDRESS = ("city", "country", "line1", "line2", "postal_code", "state")
PLAIN = ("email", "name", "phone", "description", "preferred_locales", "tax_exempt", "next_invoice_sequence")
# Not verified: exactly which addresses Stripe takes; these can belong to nobody.
_EMAIL = re.compile(r"[^@\s.]+(\.[^@\s.]+)*@[^@\s.]+(\.[^@\s.]+)*")
EU_VAT_COUNTRIES = 2  # the first letters of an EU VAT id are its country


def render(scope: Scope, customer: Customer) -> Json:
    del scope
    if customer.deleted:
        return {"id": customer.id, "object": "customer", "deleted": True}
    return {
        "id": customer.id,
        "object": "customer",
        "address": customer.address,
        "balance": customer.balance,
        "created": customer.created,
        "currency": customer.currency,
        "default_source": None,
        "delinquent": customer.delinquent,
        "description": customer.description,
        "discount": customer.discount and render_discount(customer, customer.discount),
        "email": customer.email,
        "invoice_prefix": customer.invoice_prefix,
        "invoice_settings": {
            "custom_fields": customer.invoice_custom_fields,
            "default_payment_method": customer.default_payment_method,
            "footer": customer.invoice_footer,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": customer.metadata,
        "name": customer.name,
        "next_invoice_sequence": customer.next_invoice_sequence,
        "phone": customer.phone,
        "preferred_locales": customer.preferred_locales,
        "shipping": customer.shipping,
        "tax_exempt": customer.tax_exempt,
        "test_clock": None,
    }


def address(given: Json | None) -> Json | None:
    return None if given is None else {name: given.get(name) for name in ADDRESS}


def living(scope: Scope, id_: str, param: str, *, status: int = 404) -> Customer:
    """The customer, unless deleted. Raises ApiError resource_missing."""
    customer = scope.get(Customer, id_, param, status=status)
    if customer.deleted:
        raise refused(f"No such customer: '{id_}'", code="resource_missing", param=param, status=status)
    return customer


def balances(scope: Scope, customer: Customer) -> Json:
    """What `expand[]=invoice_credit_balance` puts into a customer."""
    del scope
    return {**customer.other_balances, customer.currency or DEFAULT_CURRENCY: customer.balance}


def _apply(scope: Scope, customer: Customer, params: Json) -> None:
    if params.get("email") is not None and not _EMAIL.fullmatch(params["email"]):
        raise refused(f"Invalid email address: {params['email']}", code="email_invalid", param="email")
    for name in PLAIN:
        if name in params:
            empty: Any = [] if name == "preferred_locales" else "none" if name == "tax_exempt" else None
            setattr(customer, name, empty if params[name] is None else params[name])
    if "invoice_prefix" in params:
        prefix: str = params["invoice_prefix"]
        if not (3 <= len(prefix) <= 12 and prefix.isascii() and prefix.isalnum() and prefix.upper() == prefix):
            raise refused("Invoice prefix must be 3-12 uppercase letters or numbers.", param="invoice_prefix")
        customer.invoice_prefix = prefix
    if "address" in params:
        customer.address = address(params["address"])
    if "shipping" in params:
        given = params["shipping"]
        customer.shipping = given and {
            "address": address(given["address"]),
            "name": given["name"],
            "phone": given.get("phone"),
        }
    if "metadata" in params:
        customer.metadata = merged(customer.metadata, params["metadata"])
    settings: Json = params.get("invoice_settings") or {}
    if "footer" in settings:
        customer.invoice_footer = settings["footer"]
    if "custom_fields" in settings:
        customer.invoice_custom_fields = settings["custom_fields"]
    if "default_payment_method" in settings:
        customer.default_payment_method = _own_method(scope, customer, settings["default_payment_method"])


def _own_method(scope: Scope, customer: Customer, id_: str | None) -> str | None:
    if id_ is None:
        return None
    param = "invoice_settings[default_payment_method]"
    method = scope.get(PaymentMethod, id_, param, status=400)
    if method.customer != customer.id:
        raise refused(
            f"The customer does not have a payment method with the ID {id_}. The payment method must be attached to "
            "the customer.",
            code="resource_missing",
            param=param,
        )
    return method.id


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    customer = Customer(id=new_id("cus_", 14), created=scope.now, invoice_prefix=secrets.token_hex(4).upper())
    tax_ids = [_tax_id(scope, customer.id, given) for given in params.get("tax_id_data", ())]
    attached = None
    if params.get("payment_method") is not None:
        attached = payment_methods.usable(scope, params["payment_method"], customer, "payment_method")
        customer.payment_methods.append(attached.id)
        # The new customer's default may be named by the same id, test ids included.
        settings = params.get("invoice_settings") or {}
        if settings.get("default_payment_method") == params["payment_method"]:
            settings["default_payment_method"] = attached.id
            scope.put(attached)
    _apply(scope, customer, params)
    scope.put(customer)
    for each in (*tax_ids, *([] if attached is None else [attached])):
        scope.put(each)
    if params.get("balance"):
        move_balance(scope, customer, params["balance"], None, "adjustment")
    scope.emit("customer.created", render(scope, customer))
    for tax_id in tax_ids:
        scope.emit("customer.tax_id.created", render_tax_id(scope, tax_id))
    if attached is not None:
        scope.emit("payment_method.attached", payment_methods.render(scope, attached))
    return render(scope, customer)


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(Customer, path[0], "id"))


def update(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    customer = living(scope, path[0], "id")
    before = render(scope, customer)
    _apply(scope, customer, params)
    scope.put(customer)
    if params.get("balance") not in (None, customer.balance):
        move_balance(scope, customer, params["balance"] - customer.balance, None, "adjustment")
    after = render(scope, customer)
    changed = {name: value for name, value in before.items() if after[name] != value}
    if changed:
        scope.emit("customer.updated", after, changed)
    return after


def delete(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    customer = living(scope, path[0], "id")
    last = render(scope, customer)
    customer.deleted = True
    scope.put(customer)
    scope.emit("customer.deleted", last)
    return render(scope, customer)


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    email = params.get("email")

    def matches(customer: Customer) -> bool:
        # Source: the email filter is case-sensitive.
        same = email is None or customer.email == email
        return same and not customer.deleted and in_range(customer.created, params.get("created"))

    return page(newest(scope.all(Customer)), params, "/v1/customers", lambda c: render(scope, c), "customer", matches)


def find(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    records = [c for c in newest(scope.all(Customer)) if not c.deleted]
    return search.result(scope, records, params, "/v1/customers/search", lambda c: render(scope, c))


def list_methods(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    customer = living(scope, path[0], "customer")
    url = f"/v1/customers/{customer.id}/payment_methods"
    return payment_methods.listing(scope, customer, params, url)


def retrieve_method(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    method = scope.get(PaymentMethod, path[1], "payment_method")
    if method.customer != living(scope, path[0], "customer").id:
        raise refused(f"No such PaymentMethod: '{path[1]}'", code="resource_missing", status=404)
    return payment_methods.render(scope, method)


# Tax ids


def render_tax_id(scope: Scope, tax_id: TaxId) -> Json:
    del scope
    return {
        "id": tax_id.id,
        "object": "tax_id",
        "country": tax_id.value[:EU_VAT_COUNTRIES] if tax_id.type == "eu_vat" else tax_id.type[:2].upper(),
        "created": tax_id.created,
        "customer": tax_id.customer,
        "customer_account": None,
        "livemode": False,
        "owner": {"customer": tax_id.customer, "customer_account": None, "type": "customer"},
        "type": tax_id.type,
        "value": tax_id.value,
        "verification": {"status": "pending", "verified_address": None, "verified_name": None},
    }


def _tax_id(scope: Scope, customer: str, given: Json) -> TaxId:
    value: str = given["value"]
    if given["type"] == "eu_vat" and not (value[:2].isalpha() and value[:2].isupper() and 4 <= len(value) <= 15):
        raise refused("Invalid value for eu_vat.", code="tax_id_invalid", param="value")
    return TaxId(id=new_id("txi_"), created=scope.now, customer=customer, type=given["type"], value=value)


def create_tax_id(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    customer = living(scope, path[0], "id")
    tax_id = _tax_id(scope, customer.id, params)
    scope.put(tax_id)
    scope.emit("customer.tax_id.created", render_tax_id(scope, tax_id))
    return render_tax_id(scope, tax_id)


def _tax_id_of(scope: Scope, path: tuple[str, ...]) -> TaxId:
    customer = living(scope, path[0], "id")
    tax_id = scope.get(TaxId, path[1], "id")
    if tax_id.customer != customer.id:
        raise refused(f"No such tax ID: '{path[1]}'", code="resource_missing", param="id", status=404)
    return tax_id


def retrieve_tax_id(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render_tax_id(scope, _tax_id_of(scope, path))


def delete_tax_id(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    tax_id = _tax_id_of(scope, path)
    scope.remove(tax_id)
    scope.emit("customer.tax_id.deleted", render_tax_id(scope, tax_id))
    return {"id": tax_id.id, "object": "tax_id", "deleted": True}


def list_tax_ids(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    customer = living(scope, path[0], "id")
    url = f"/v1/customers/{customer.id}/tax_ids"
    return page(newest(scope.children(TaxId, customer.id)), params, url, lambda t: render_tax_id(scope, t), TaxId.NOUN)


def tax_ids(scope: Scope, customer: Customer) -> Json:
    """The list that `expand[]=tax_ids` puts into a customer."""
    data = [render_tax_id(scope, t) for t in newest(scope.children(TaxId, customer.id))]
    return listed(f"/v1/customers/{customer.id}/tax_ids", data[:10], len(data) > 10)


# Discount


def render_discount(customer: Customer, discount: Discount) -> Json:
    return {
        "id": discount.id,
        "object": "discount",
        "checkout_session": None,
        "customer": customer.id,
        "customer_account": None,
        "end": None,
        "invoice": None,
        "invoice_item": None,
        "promotion_code": None,
        "source": {"coupon": discount.coupon, "type": "coupon"},
        "start": discount.start,
        "subscription": None,
        "subscription_item": None,
    }


def discount(scope: Scope, customer: Customer, percent_off: Decimal, coupon: str) -> Json:
    """A coupon without an end, as Stripe's dashboard and older API versions redeem it; this one has no parameter.

    Source: Stripe's changelog, 2025-03-31.basil, "Removes coupon and promotion code parameters".
    """
    customer.discount = Discount(new_id("di_"), coupon, percent_off, scope.now)
    scope.put(customer)
    shown = render_discount(customer, customer.discount)
    scope.emit("customer.discount.created", shown)
    return shown


def delete_discount(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    customer = living(scope, path[0], "customer")
    if customer.discount is None:
        raise refused(f"No active discount for customer: {customer.id}", code="resource_missing", status=404)
    last = render_discount(customer, customer.discount)
    customer.discount = None
    scope.put(customer)
    scope.emit("customer.discount.deleted", last)
    return last | {"deleted": True}


# Balance


def render_transaction(scope: Scope, transaction: BalanceTransaction) -> Json:
    del scope
    return {
        "id": transaction.id,
        "object": "customer_balance_transaction",
        "amount": transaction.amount,
        "checkout_session": None,
        "created": transaction.created,
        "credit_note": transaction.credit_note,
        "currency": transaction.currency,
        "customer": transaction.customer,
        "customer_account": None,
        "description": transaction.description,
        "ending_balance": transaction.ending_balance,
        "invoice": transaction.invoice,
        "livemode": False,
        "metadata": transaction.metadata,
        "type": transaction.type,
    }


def move_balance(
    scope: Scope,
    customer: Customer,
    amount: int,
    currency: str | None,
    type_: str,
    *,
    invoice: str | None = None,
    credit_note: str | None = None,
    description: str | None = None,
    metadata: dict[str, str] | None = None,
) -> BalanceTransaction:
    """Add to a customer's balance and record it.

    amount: minor units, negative is a credit. currency: None when the customer has none yet and the change names
    none either; the record then says the account's default.
    """
    customer.currency = customer.currency or currency
    if currency in (None, customer.currency):
        customer.balance += amount
    else:
        others = customer.other_balances
        customer.other_balances = {**others, currency: others.get(currency, 0) + amount}
    transaction = BalanceTransaction(
        id=new_id("cbtxn_"),
        created=scope.now,
        customer=customer.id,
        amount=amount,
        currency=currency or customer.currency or DEFAULT_CURRENCY,
        ending_balance=customer.balance_in(currency or customer.currency or DEFAULT_CURRENCY),
        type=type_,
        invoice=invoice,
        credit_note=credit_note,
        description=description,
        metadata=metadata or {},
    )
    scope.put(customer)
    scope.put(transaction)
    return transaction


def create_transaction(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    customer = living(scope, path[0], "customer")
    currency: str = params["currency"].lower()
    before = customer.balance
    transaction = move_balance(
        scope,
        customer,
        params["amount"],
        currency,
        "adjustment",
        description=params.get("description"),
        metadata=merged({}, params.get("metadata")),
    )
    scope.emit("customer.updated", render(scope, customer), {"balance": before})
    return render_transaction(scope, transaction)


def list_transactions(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    customer = living(scope, path[0], "customer")
    return page(
        newest(scope.children(BalanceTransaction, customer.id)),
        params,
        f"/v1/customers/{customer.id}/balance_transactions",
        lambda t: render_transaction(scope, t),
        BalanceTransaction.NOUN,
        matching(params, invoice="invoice"),
    )


_WRITABLE = (
    "address balance description email invoice_prefix invoice_settings.custom_fields"
    " invoice_settings.default_payment_method"
    " invoice_settings.footer metadata name next_invoice_sequence phone preferred_locales shipping tax_exempt"
)
_PAGED = "limit starting_after ending_before"

ROUTES = (
    Route("POST", "/v1/customers", "CustomerCreateParams", f"{_WRITABLE} payment_method tax_id_data", create),
    Route("GET", "/v1/customers", "CustomerListParams", f"{_PAGED} created email", list_all),
    Route("GET", "/v1/customers/search", "CustomerSearchParams", "query limit page", find),
    Route("GET", "/v1/customers/{}", "CustomerRetrieveParams", "", retrieve),
    Route("POST", "/v1/customers/{}", "CustomerUpdateParams", _WRITABLE, update),
    Route("DELETE", "/v1/customers/{}", "CustomerDeleteParams", "", delete),
    Route(
        "GET", "/v1/customers/{}/payment_methods", "CustomerListPaymentMethodsParams", f"{_PAGED} type", list_methods
    ),
    Route("GET", "/v1/customers/{}/payment_methods/{}", "CustomerRetrievePaymentMethodParams", "", retrieve_method),
    Route("DELETE", "/v1/customers/{}/discount", "CustomerDeleteDiscountParams", "", delete_discount),
    Route("POST", "/v1/customers/{}/tax_ids", "CustomerCreateTaxIdParams", "type value", create_tax_id),
    Route("GET", "/v1/customers/{}/tax_ids", "CustomerListTaxIdsParams", _PAGED, list_tax_ids),
    Route("GET", "/v1/customers/{}/tax_ids/{}", "CustomerRetrieveTaxIdParams", "", retrieve_tax_id),
    Route("DELETE", "/v1/customers/{}/tax_ids/{}", "CustomerDeleteTaxIdParams", "", delete_tax_id),
    Route(
        "POST",
        "/v1/customers/{}/balance_transactions",
        "CustomerCreateBalanceTransactionParams",
        "amount currency description metadata",
        create_transaction,
    ),
    Route(
        "GET",
        "/v1/customers/{}/balance_transactions",
        "CustomerListBalanceTransactionsParams",
        f"{_PAGED} invoice",
        list_transactions,
    ),
)
