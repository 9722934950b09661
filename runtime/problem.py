"""What went wrong → application/problem+json (RFC 9457), the same from every endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec

MEDIA_TYPE = "application/problem+json"


@dataclass(slots=True)
class Problem(Exception):
    """An answer other than success. code: machine-readable. errors: of fields, in a 422. headers: added to it."""

    status: int
    code: str
    detail: str
    errors: Sequence[Mapping[str, Any]] = ()
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def body(self) -> bytes:
        fields: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.errors:
            fields["errors"] = list(self.errors)
        try:
            return msgspec.json.encode(fields)
        except UnicodeEncodeError:
            return msgspec.json.encode(_encodable(fields))


def _encodable(value: Any) -> Any:
    """The same, with halves of surrogate pairs spelled out: what a client named may have them, and UTF-8 has not."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_encodable(name): _encodable(inner) for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [_encodable(inner) for inner in value]  # pyright: ignore[reportUnknownVariableType]
    return value
