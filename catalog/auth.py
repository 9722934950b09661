"""Authorization header → a valid API key, or 401, or 403."""

from __future__ import annotations

from catalog.view import CatalogView
from runtime.problem import Problem
from schemas.organization import ApiKey, Scope, secret_digest


def authorize(view: CatalogView, authorization: str | None, scope: Scope) -> ApiKey:
    """The key, if it has the scope. Raises Problem 401 (missing, malformed, unknown, revoked) or 403 (other scopes).

    Looked up by its SHA-256, so that the time taken reveals nothing about a secret. A revocation takes effect as
    soon as the view has read it.
    """
    kind, _, secret = (authorization or "").partition(" ")
    if kind.lower() != "bearer" or not secret:
        raise Problem(
            401, "missing_key", "send Authorization: Bearer KEY", headers={"www-authenticate": 'Bearer realm="usage"'}
        )
    key = view.key_by_digest(secret_digest(secret.strip()))
    if key is None:
        raise Problem(
            401,
            "invalid_key",
            "the key is unknown or revoked",
            headers={"www-authenticate": 'Bearer realm="usage", error="invalid_token"'},
        )
    if not key.allows(scope):
        raise Problem(403, "missing_scope", f"the key lacks the scope {scope}")
    return key
