"""Settings → rows that people and the docs read."""

from __future__ import annotations

from pydantic import AliasChoices, SecretStr

from schemas.settings import Settings


def describe_settings(settings: Settings) -> list[tuple[str, str, str, str]]:
    """(environment name, value in force, default, meaning) of every setting; secrets are masked."""
    rows: list[tuple[str, str, str, str]] = []
    defaults: dict[str, object] = {}
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        environment = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"USAGE_{name.upper()}"
        defaults[name] = info.get_default(call_default_factory=True, validated_data=defaults)
        rows.append((environment, _shown(getattr(settings, name)), _shown(defaults[name]), info.description or ""))
    return rows


def _shown(value: object) -> str:
    if value is None:
        return ""
    return "****" if isinstance(value, SecretStr) else str(value)
