"""kind → a new id, `mtr_` and so on: sortable by nothing, guessable by no one."""

from __future__ import annotations

import secrets
import string

_ALPHABET = string.digits + string.ascii_lowercase
PREFIXES = {
    "organization": "org",
    "api_key": "key",
    "meter": "mtr",
    "product": "prod",
    "customer": "cus",
    "subscription": "sub",
    "alert_rule": "rule",
    "webhook_endpoint": "whe",
}


def new_id(kind: str) -> str:
    """A fresh id of 24 base-36 characters (124 bits) behind the prefix of its kind."""
    return f"{PREFIXES[kind]}_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))
