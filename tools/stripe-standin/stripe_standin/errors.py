"""What went wrong → Stripe's error body and status.

Source: Stripe, "Errors", "Error codes" and "Advanced error handling".
"""

from __future__ import annotations

from typing import Any

DOC = "https://stripe.com/docs/error-codes/"


class ApiError(Exception):
    """An answer other than 2xx. `fields` is the content of `error` in the body."""

    def __init__(self, status: int, type_: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.keeps_changes = False
        """Whether what the request changed before it failed stands, as a charge that was declined does."""
        self.fields: dict[str, Any] = {"type": type_, "message": message}
        self.fields |= {name: value for name, value in fields.items() if value is not None}
        code = self.fields.get("code")
        if code is not None:
            self.fields["doc_url"] = DOC + str(code).replace("_", "-")

    def body(self, request_id: str) -> dict[str, Any]:
        url = f"https://dashboard.stripe.com/test/logs/{request_id}"
        return {"error": dict(sorted((self.fields | {"request_log_url": url}).items()))}


class InvalidParameter(ApiError):
    """Parameters that fail validation: no endpoint began to execute, so the answer is never replayed."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, "invalid_request_error", message, param=param, code=code)


def refused(message: str, *, code: str | None = None, param: str | None = None, status: int = 400) -> ApiError:
    """A valid request that the state of the object does not allow."""
    return ApiError(status, "invalid_request_error", message, code=code, param=param)


def missing(what: str, id_: str, param: str, *, status: int = 404) -> ApiError:
    """No such object; 404 when the path names it, 400 when a parameter does."""
    return refused(f"No such {what}: '{id_}'", code="resource_missing", param=param, status=status)
