"""An error of Stripe's SDK → what is known after it: certainly not done, done and declined, or unknown. Pure."""

from __future__ import annotations

import stripe

from ledger.records import IDEMPOTENCY_ERROR


class StripeFailure(Exception):
    """A call failed. status: HTTP's, None without an answer. code: Stripe's, or ours. param: the parameter at fault."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None,
        code: str | None,
        request_id: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.request_id = request_id

    @property
    def reason(self) -> str:
        """For the invoice: the code and what Stripe says."""
        return f"{self.code}: {self}" if self.code else str(self)


class StripeRefused(StripeFailure):
    """Certain: nothing was done (400, 401, 403, 404, 429)."""


class StripeDeclined(StripeFailure):
    """402: done, and the bank said no. Stripe tries again by its own schedule, we don't."""


class IdempotencyMisuse(StripeRefused):
    """The key was used with other parameters: a fault of ours, the invoice stops."""


class StripeUnknown(StripeFailure):
    """No answer, 409 or 5xx for as long as we asked: it may have been done. The key stays the same."""


class StripeReplayed(StripeUnknown):
    """A 5xx that Stripe kept under the key: repeating the call does not help, only reading the objects does."""


def classify(error: stripe.StripeError) -> StripeFailure:
    """The failure that an error of the SDK stands for."""
    status, code = error.http_status, error.code
    kind: type[StripeFailure]
    if isinstance(error, stripe.IdempotencyError) and status in (400, 404):
        kind, code = IdempotencyMisuse, IDEMPOTENCY_ERROR
    elif status == 402:
        kind, code = StripeDeclined, (error.error.decline_code if error.error is not None else None) or code
    elif status == 429:
        kind, code = StripeRefused, code or "rate_limit"
    elif status is not None and 400 <= status < 500 and status != 409:
        kind = StripeRefused
    elif status is not None and status >= 500 and (error.headers or {}).get("Idempotent-Replayed") == "true":
        kind = StripeReplayed
    else:  # no answer, a conflict, a server's error, or an answer that can't be read
        kind = StripeUnknown
    param = getattr(error, "param", None)
    return kind(error.user_message or str(error), status=status, code=code, request_id=error.request_id, param=param)
