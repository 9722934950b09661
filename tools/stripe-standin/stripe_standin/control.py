"""/_standin/…: what tests steer and read, none of it Stripe's.

GET, POST          clock            {"advance_seconds": 86400}
GET, POST          settings         fields of Settings
GET, POST, DELETE  faults           fields of Fault
GET, DELETE        requests         ?method=&path= (a pattern with *)
GET                charges          ?account=        how often every invoice was charged
GET                webhooks         how many deliveries are pending
POST               payment_intents/{id}/authenticate   {"outcome": "succeeded" or "failed", "account"?}
POST               customers/{id}/discount             {"percent_off": "50", "coupon"?, "account"?}
POST               disputes         {"charge": "ch_…", "reason"?, "account"?}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fnmatch import translate
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from stripe_standin import customers, invoices, payments
from stripe_standin.errors import ApiError
from stripe_standin.faults import Fault
from stripe_standin.records import Charge, Invoice, PaymentIntent
from stripe_standin.state import Json, Scope, Settings, new_id

if TYPE_CHECKING:
    from stripe_standin.app import App

PREFIX = "/_standin/"
_AUTHENTICATE = re.compile(r"payment_intents/(\w+)/authenticate")
_DISCOUNT = re.compile(r"customers/(\w+)/discount")


class WrongUse(Exception):
    """A control called in a way that it does not understand."""


def answer(app: App, method: str, path: str, query: Mapping[str, str], body: bytes) -> web.Response:
    """Answer a control request: 200, 400 with what is wrong, or 404."""
    try:
        given: Any = msgspec.json.decode(body) if body else {}
        if not isinstance(given, dict):
            raise WrongUse("the body must be a JSON object")
        result = _answer(app, method, path.removeprefix(PREFIX), query, given)
    except (WrongUse, msgspec.MsgspecError) as error:
        return web.json_response({"error": {"message": str(error)}}, status=400)
    except ApiError as error:
        app.world.rollback()
        return web.json_response(error.body("req_standin"), status=error.status)
    if result is None:
        return web.json_response({"error": {"message": f"no such control: {method} {path}"}}, status=404)
    return web.Response(body=msgspec.json.encode(result), content_type="application/json")


def _answer(app: App, method: str, name: str, query: Mapping[str, str], given: Json) -> Any:
    match (method, name):
        case ("GET", "clock"):
            return {"now": app.world.now}
        case ("POST", "clock"):
            return _advance(app, given)
        case ("GET", "settings"):
            return app.world.settings
        case ("POST", "settings"):
            return _settings(app, given)
        case ("GET", "faults"):
            return {"data": app.faults.listed}
        case ("POST", "faults"):
            fault = msgspec.convert(given, Fault)
            app.faults.order(fault)
            return fault
        case ("DELETE", "faults"):
            app.faults.clear()
            return {"data": []}
        case ("GET", "requests"):
            return {"data": [r for r in app.requests if _wanted(r, query)]}
        case ("DELETE", "requests"):
            app.requests.clear()
            return {"data": []}
        case ("GET", "charges"):
            charges = app.world.account(query.get("account", "")).table(Charge)
            return {"invoices": payments.charges_by_invoice(list(charges.values()))}
        case ("GET", "webhooks"):
            return {"pending": app.sender.pending}
        case ("POST", "disputes"):
            return _dispute(app, given)
        case ("POST", _) if owner := _DISCOUNT.fullmatch(name):
            return _discount(app, owner[1], given)
        case _:
            intent = _AUTHENTICATE.fullmatch(name)
            return _authenticate(app, intent[1], given) if method == "POST" and intent else None


def _advance(app: App, given: Json) -> Json:
    seconds = given.get("advance_seconds")
    if not isinstance(seconds, int) or seconds < 0 or len(given) != 1:
        raise WrongUse('the clock takes {"advance_seconds": N}, N a whole number, not negative')
    app.world.advance(seconds)
    app.commit()
    app.run_due()
    return {"now": app.world.now}


def _settings(app: App, given: Json) -> Settings:
    changed = msgspec.convert(msgspec.to_builtins(app.world.settings) | given, Settings)
    app.world.settings = changed
    app.world.store.put_setting("settings", msgspec.json.encode(changed))
    app.commit()
    return changed


def _wanted(request: Json, query: Mapping[str, str]) -> bool:
    wanted = {name: re.compile(translate(query.get(name, "*"))) for name in ("method", "path")}
    return all(pattern.fullmatch(request[name]) for name, pattern in wanted.items())


def _scope(app: App, given: Json) -> Scope:
    return Scope(app.world, app.world.account(given.get("account", "")), new_id("req_", 14))


def _dispute(app: App, given: Json) -> Json:
    scope = _scope(app, given)
    charge = scope.get(Charge, given.get("charge", ""), "charge")
    dispute = payments.dispute(scope, charge, given.get("reason", "fraudulent"))
    app.commit()
    return payments.render_dispute(scope, dispute)


def _discount(app: App, customer_id: str, given: Json) -> Json:
    percent_off = msgspec.convert(given.get("percent_off"), Decimal)
    if not 0 < percent_off <= 100:
        raise WrongUse("percent_off lies above 0, and is 100 at most")
    scope = _scope(app, given)
    shown = customers.discount(
        scope, customers.living(scope, customer_id, "customer"), percent_off, given.get("coupon", "standin_coupon")
    )
    app.commit()
    return shown


def _authenticate(app: App, intent_id: str, given: Json) -> Json:
    outcome = given.get("outcome", "succeeded")
    if outcome not in ("succeeded", "failed"):
        raise WrongUse("outcome must be succeeded or failed")
    scope = _scope(app, given)
    intent = scope.get(PaymentIntent, intent_id, "id")
    invoices.authenticate(scope, scope.get(Invoice, intent.invoice), success=outcome == "succeeded")
    app.commit()
    return payments.render_intent(scope, intent)
