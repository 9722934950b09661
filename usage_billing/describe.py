"""Settings → rows that people and the docs read."""

from __future__ import annotations

import re

from pydantic import AliasChoices, SecretStr

from schemas.settings import Settings

_PASSWORD = re.compile(r"(://[^:@/\s]*):[^/\s]*@")  # one that holds an @ too


def describe_settings(settings: Settings) -> list[tuple[str, str, str, str]]:
    """(environment name, value in force, default, meaning) of every setting; secrets are masked."""
    rows: list[tuple[str, str, str, str]] = []
    defaults: dict[str, object] = {}
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        environment = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"USAGE_{name.upper()}"
        defaults[name] = info.get_default(call_default_factory=True, validated_data=defaults)
        shown = _shown(getattr(settings, name))
        # The default's password is each local stack's own.
        rows.append((environment, shown, _shown(defaults[name], password=""), info.description or ""))
    return rows


def _shown(value: object, password: str = ":****") -> str:
    """password: stands for that of an address."""
    if value is None:
        return ""
    return "****" if isinstance(value, SecretStr) else _PASSWORD.sub(rf"\1{password}@", str(value))
