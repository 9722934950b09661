"""expand[] → ids replaced by the objects that they name, and lists that are shown on demand only.

Source: Stripe, "Expanding responses": dotted paths up to four levels deep; `data.` goes into a list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stripe_standin import credit_notes, customers, invoice_items, invoice_view, payment_methods, payments
from stripe_standin.errors import InvalidParameter
from stripe_standin.records import (
    BalanceTransaction,
    Charge,
    CreditNote,
    Customer,
    Invoice,
    InvoiceItem,
    InvoicePayment,
    PaymentIntent,
    PaymentMethod,
    Record,
    Refund,
)
from stripe_standin.state import Json, Scope

DEPTH_MAX = 4

_RENDERERS: Mapping[type[Record], Callable[[Scope, Any], Json]] = {
    BalanceTransaction: customers.render_transaction,
    Charge: payments.render_charge,
    CreditNote: credit_notes.render,
    Customer: customers.render,
    Invoice: invoice_view.render,
    InvoiceItem: invoice_items.render,
    InvoicePayment: payments.render_payment,
    PaymentIntent: payments.render_intent,
    PaymentMethod: payment_methods.render,
    Refund: payments.render_refund,
}
_ON_DEMAND: Mapping[tuple[str, str], Callable[[Scope, str], Json]] = {
    ("invoice", "payments"): lambda scope, id_: payments.of_invoice(scope, scope.shown(Invoice, id_)),
    ("customer", "invoice_credit_balance"): lambda scope, id_: customers.balances(scope, scope.shown(Customer, id_)),
    ("customer", "tax_ids"): lambda scope, id_: customers.tax_ids(scope, scope.shown(Customer, id_)),
}


def expand(scope: Scope, obj: Json, paths: list[str]) -> Json:
    """Expand an answer in place and return it. Raises InvalidParameter for what can't be expanded."""
    for path in paths:
        parts = path.split(".")
        if len(parts) > DEPTH_MAX:
            raise InvalidParameter(f"You cannot expand more than {DEPTH_MAX} levels of a property.", "expand")
        _expand(scope, obj, parts, path)
    return obj


def _expand(scope: Scope, obj: Json, parts: list[str], path: str) -> None:
    name, rest = parts[0], parts[1:]
    if obj.get("object") in ("list", "search_result") and name == "data":
        for element in obj["data"]:
            _expand(scope, element, rest, path) if rest else None
        return
    on_demand = _ON_DEMAND.get((str(obj.get("object")), name))
    if on_demand is not None and name not in obj:
        obj[name] = on_demand(scope, obj["id"])
    if name not in obj:
        raise InvalidParameter(f"This property cannot be expanded ({path}).", "expand")
    value = obj[name]
    if isinstance(value, str):
        value = obj[name] = _object(scope, value, path)
    if rest and isinstance(value, dict):
        _expand(scope, value, rest, path)


def _object(scope: Scope, id_: str, path: str) -> Json:
    for kind, render in _RENDERERS.items():
        if id_.startswith(kind.PREFIX):
            record = scope.peek(kind, id_)
            if record is not None:
                return render(scope, record)
    raise InvalidParameter(f"This property cannot be expanded ({path}).", "expand")
