"""/v1/account: whose key it is. Source: Stripe API reference, "Retrieve account"."""

from __future__ import annotations

from stripe_standin.route import Route
from stripe_standin.state import Json, Scope, new_id


def own_id(scope: Scope) -> str:
    """The id of the account that owns the key: another one in each directory of state, as of each sandbox at Stripe."""
    store = scope.world.store
    known = store.setting("account_id")
    if known is None:
        known = new_id("acct_1", 16).encode()
        store.put_setting("account_id", known)
    return known.decode()


def retrieve(scope: Scope, path: tuple[str, ...], params: Json) -> Json:
    del path, params
    return {
        "id": scope.account.id or own_id(scope),
        "object": "account",
        "business_type": None,
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": True,
        "email": None,
        "metadata": {},
        "payouts_enabled": True,
        "type": "standard",
    }


ROUTES = (Route("GET", "/v1/account", "AccountRetrieveCurrentParams", "", retrieve),)
