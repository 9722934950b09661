"""/v1/payment_methods: test tokens and test ids become payment methods, attached to customers.

Source: Stripe API reference, "PaymentMethods"; "Testing". A test id such as pm_card_visa is a pattern: every use
makes a new payment method. A decline card can be created and not attached; `chargeCustomerFail` can be attached
and not charged.
"""

from __future__ import annotations

from stripe_standin import cards
from stripe_standin.errors import ApiError, InvalidParameter, refused
from stripe_standin.paging import matching, newest, page
from stripe_standin.params import merged
from stripe_standin.records import Customer, PaymentMethod
from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id

ADDRESS_NONE = {"city": None, "country": None, "line1": None, "line2": None, "postal_code": None, "state": None}
CARD_YEARS_VALID = 4
SECONDS_PER_YEAR = 31_556_952


def expiry_year(created: int) -> int:
    return 1970 + created // SECONDS_PER_YEAR + CARD_YEARS_VALID


def card_details(name: str, created: int) -> Json:
    """Fields of a card that a payment method and a charge share."""
    card = cards.CARDS[name]
    return {
        "brand": card.brand,
        "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
        "country": "US",
        "exp_month": 12,
        "exp_year": expiry_year(created),
        "fingerprint": f"standin{card.brand}{card.last4}"[:16],
        "funding": card.funding,
        "last4": card.last4,
        "regulated_status": "unregulated",
        "wallet": None,
    }


def render(scope: Scope, method: PaymentMethod) -> Json:
    del scope
    card = cards.CARDS[method.card]
    return {
        "id": method.id,
        "object": "payment_method",
        "allow_redisplay": method.allow_redisplay,
        "billing_details": {
            "address": method.billing_details.get("address") or ADDRESS_NONE,
            "email": method.billing_details.get("email"),
            "name": method.billing_details.get("name"),
            "phone": method.billing_details.get("phone"),
            "tax_id": method.billing_details.get("tax_id"),
        },
        card.type: debit_details(card) if card.is_debit else _card(method),
        "created": method.created,
        "customer": method.customer,
        "customer_account": None,
        "livemode": False,
        "metadata": method.metadata,
        "type": card.type,
    }


def _card(method: PaymentMethod) -> Json:
    brand = cards.CARDS[method.card].brand
    return card_details(method.card, method.created) | {
        "display_brand": brand,
        "generated_from": None,
        "networks": {"available": [brand], "preferred": None},
        "three_d_secure_usage": {"supported": True},
    }


def debit_details(card: cards.Card) -> Json:
    """Fields of a bank account that a payment method and a charge share."""
    known: Json = {"fingerprint": f"standin{card.last4}", "last4": card.last4}
    match card.type:
        case "sepa_debit":
            return known | {"bank_code": "37040044", "branch_code": "", "country": "DE"}
        case "us_bank_account":
            return known | {
                "account_holder_type": "individual",
                "account_type": "checking",
                "bank_name": "STRIPE TEST BANK",
                "routing_number": "110000000",
            }
        case "bacs_debit":
            return known | {"sort_code": "108800"}
        case _:
            return known | {"bsb_number": "000000"}


def declined(decline: cards.Decline, **fields: object) -> ApiError:
    """402, a card_error."""
    return ApiError(402, "card_error", decline.message, code=decline.code, decline_code=decline.decline_code, **fields)


def usable(scope: Scope, id_: str, customer: Customer, param: str) -> PaymentMethod:
    """The payment method for an id or test id, with the customer set, not stored yet.

    Raises ApiError: unknown id, attached elsewhere, or a card that the bank refuses to have attached.
    """
    method = scope.find(PaymentMethod, id_)
    if method is None:
        name = cards.named(id_) if id_.startswith("pm_") else None
        if name is None:
            raise refused(f"No such PaymentMethod: '{id_}'", code="resource_missing", param=param, status=404)
        method = PaymentMethod(id=new_id("pm_1"), created=scope.now, card=name)
    if method.customer is not None and method.customer != customer.id:
        raise refused(
            "The payment method you provided has already been attached to a customer.",
            code="payment_method_already_attached",
        )
    decline = cards.CARDS[method.card].attach
    if decline is not None:
        raise declined(decline)
    method.customer = customer.id
    return method


def create(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    if params.get("type") != "card":
        raise InvalidParameter("The stand-in has payment methods of type card only.", "type")
    card: Json = params.get("card") or {}
    if "number" in card:
        raise ApiError(
            402,
            "card_error",
            "Sending credit card numbers directly to the Stripe API is generally unsafe. Use test tokens "
            "(card[token]=tok_visa).",
        )
    token: str | None = card.get("token")
    if token is None:
        raise InvalidParameter("Missing required param: card[token].", "card[token]", "parameter_missing")
    name = cards.named(token) if token.startswith("tok_") else None
    if name is None:
        raise refused(f"No such token: '{token}'", code="resource_missing", param="card[token]")
    method = PaymentMethod(
        id=new_id("pm_1"),
        created=scope.now,
        card=name,
        billing_details=params.get("billing_details") or {},
        metadata=merged({}, params.get("metadata")),
        allow_redisplay=params.get("allow_redisplay", "unspecified"),
    )
    scope.put(method)
    return render(scope, method)


def attach(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    if params.get("customer") is None:
        raise InvalidParameter("Missing required param: customer.", "customer", "parameter_missing")
    customer = scope.get(Customer, params["customer"], "customer", status=400)
    if customer.deleted:
        raise refused(f"No such customer: '{customer.id}'", code="resource_missing", param="customer")
    method = usable(scope, path[0], customer, "payment_method")
    scope.put(method)
    if method.id not in customer.payment_methods:
        customer.payment_methods.append(method.id)
        scope.put(customer)
        scope.emit("payment_method.attached", render(scope, method))
    return render(scope, method)


def detach(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    method = scope.get(PaymentMethod, path[0], "payment_method")
    if method.customer is None:
        raise refused("The payment method you provided is not attached to a customer so detachment is impossible.")
    customer = scope.get(Customer, method.customer)
    customer.payment_methods.remove(method.id)
    if customer.default_payment_method == method.id:
        customer.default_payment_method = None
    method.customer = None
    scope.put(customer)
    scope.put(method)
    scope.emit("payment_method.detached", render(scope, method), {"customer": customer.id})
    return render(scope, method)


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del params
    return render(scope, scope.get(PaymentMethod, path[0], "payment_method"))


def update(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    method = scope.get(PaymentMethod, path[0], "payment_method")
    if method.customer is None:
        raise refused(
            "You must save this PaymentMethod to a customer before you can update it.", param="payment_method"
        )
    if "metadata" in params:
        method.metadata = merged(method.metadata, params["metadata"])
    if "billing_details" in params:
        method.billing_details = method.billing_details | params["billing_details"]
    if "allow_redisplay" in params:
        method.allow_redisplay = params["allow_redisplay"]
    scope.put(method)
    scope.emit("payment_method.updated", render(scope, method))
    return render(scope, method)


def listing(scope: Scope, customer: Customer | None, params: Json, url: str) -> Json:
    """A page of a customer's payment methods; without a customer, of every method that is attached to one."""
    owned = (
        [scope.shown(PaymentMethod, id_) for id_ in customer.payment_methods]
        if customer is not None
        else [m for m in scope.all(PaymentMethod) if m.customer is not None]
    )
    type_ = params.get("type")
    wanted = [each for each in owned if type_ in (None, cards.CARDS[each.card].type)]
    return page(newest(wanted), params, url, lambda m: render(scope, m), "PaymentMethod", matching(params))


def list_all(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path
    customer = None
    if params.get("customer") is not None:
        customer = scope.get(Customer, params["customer"], "customer", status=400)
    return listing(scope, customer, params, "/v1/payment_methods")


ROUTES = (
    Route(
        "POST",
        "/v1/payment_methods",
        "PaymentMethodCreateParams",
        "type card.token card.number card.exp_month card.exp_year card.cvc billing_details metadata allow_redisplay",
        create,
    ),
    Route(
        "GET",
        "/v1/payment_methods",
        "PaymentMethodListParams",
        "customer type limit starting_after ending_before",
        list_all,
    ),
    Route("GET", "/v1/payment_methods/{}", "PaymentMethodRetrieveParams", "", retrieve),
    Route(
        "POST",
        "/v1/payment_methods/{}",
        "PaymentMethodUpdateParams",
        "metadata billing_details allow_redisplay",
        update,
    ),
    Route("POST", "/v1/payment_methods/{}/attach", "PaymentMethodAttachParams", "customer", attach),
    Route("POST", "/v1/payment_methods/{}/detach", "PaymentMethodDetachParams", "", detach),
)
