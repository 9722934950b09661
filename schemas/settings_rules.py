"""Settings → why they are unsafe: what every service refuses to start with. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from pydantic import SecretStr

SECRET_LENGTH_MIN = 20
"""Random characters of base64: 120 bits."""
_ADDRESS = re.compile(r"(\w+)://(?:[^@/]*@)?([^:/?#]+)")
STANDIN_API_KEY = "sk_test_local"
STANDIN_WEBHOOK_SECRET = "whsec_local"


class Secrets(Protocol):
    """The settings that the rules check."""

    @property
    def admin_key(self) -> SecretStr | None: ...
    @property
    def session_secret(self) -> SecretStr | None: ...
    @property
    def stripe_api_base(self) -> str: ...
    @property
    def stripe_api_key(self) -> SecretStr: ...
    @property
    def stripe_webhook_secret(self) -> SecretStr: ...


def unsafe(settings: Secrets) -> Iterator[str]:
    """A sentence for each rule that the settings break; none contains a secret."""
    admin, session = _text(settings.admin_key), _text(settings.session_secret)
    for name, secret in (("USAGE_ADMIN_KEY", admin), ("USAGE_SESSION_SECRET", session)):
        if secret is not None and len(secret) < SECRET_LENGTH_MIN:
            yield f"{name} is too short: use at least {SECRET_LENGTH_MIN} random characters"
    if session is not None and session == admin:
        yield "USAGE_SESSION_SECRET equals USAGE_ADMIN_KEY: whoever has the key could forge sessions"
    yield from _unsafe_stripe(
        settings.stripe_api_base,
        settings.stripe_api_key.get_secret_value(),
        settings.stripe_webhook_secret.get_secret_value(),
    )


def _unsafe_stripe(api_base: str, api_key: str, webhook_secret: str) -> Iterator[str]:
    address = _ADDRESS.match(api_base)
    scheme, host = (address[1].lower(), address[2].lower()) if address else ("", "")
    at_stripe = host == "stripe.com" or host.endswith(".stripe.com")
    if at_stripe and scheme != "https":
        yield "STRIPE_API_BASE is Stripe without TLS: use https"
    if at_stripe and api_key == STANDIN_API_KEY:
        yield "STRIPE_API_BASE is Stripe, but STRIPE_API_KEY is the local stand-in's"
    if at_stripe and STANDIN_WEBHOOK_SECRET in [each.strip() for each in webhook_secret.split(",")]:
        yield "STRIPE_API_BASE is Stripe, but STRIPE_WEBHOOK_SECRET is the local stand-in's: anyone could sign webhooks"
    if not at_stripe and api_key.startswith(("sk_live_", "rk_live_")):
        yield f"STRIPE_API_KEY is a live key, but STRIPE_API_BASE is {host or 'no address'}, not Stripe"


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
