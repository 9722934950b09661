"""An idempotency key → the answer that its first request got.

Source: Stripe, "Idempotent requests" and "Advanced error handling": the status and body of the first request are
kept whatever they are, 500s included, once the endpoint began to execute; parameters that fail validation and
requests that conflict with one in flight are not kept; the same key with other parameters is an error; keys are
pruned after at least 24 hours; GET and DELETE take no key.
"""

from __future__ import annotations

from stripe_standin.errors import ApiError, InvalidParameter, refused
from stripe_standin.store import Reply, Store

KEY_LENGTH_MAX = 255
KEPT_SECONDS = 24 * 3600


def in_use(key: str) -> ApiError:
    """409. Records of Stripe's answer disagree about its type; some have idempotency_error here too."""
    return refused(
        "There is currently another in-progress request using this Idempotent Key (that probably means you submitted "
        f"twice, and the other request is still going through): {key}. Please try again later.",
        code="idempotency_key_in_use",
        status=409,
    )


class Keys:
    """The keys of all accounts; those in flight are known to this process only, answers are in the file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._in_flight: set[tuple[str, str]] = set()

    def begin(self, account: str, key: str, target: str, fingerprint: str, now: int) -> Reply | None:
        """Take the key for a request, or return the answer to replay.

        target: the path. fingerprint: equal for equal parameters.
        Raises ApiError: 400 for another use of the key, 409 while its first request is executing.
        """
        if len(key) > KEY_LENGTH_MAX:
            raise InvalidParameter(f"Idempotency keys can be at most {KEY_LENGTH_MAX} characters long.")
        kept = self._store.reply(account, key)
        if kept is not None and now - kept.at < KEPT_SECONDS:
            advice = f"Try using a key other than '{key}' if you meant to execute a different request."
            if kept.target != target:
                message = "Keys for idempotent requests can only be used for the same endpoint they were first used for"
                raise ApiError(400, "idempotency_error", f"{message} ('{target}' vs '{kept.target}'). {advice}")
            if kept.fingerprint != fingerprint:
                message = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                )
                raise ApiError(400, "idempotency_error", f"{message} {advice}")
            return kept
        if (account, key) in self._in_flight:
            raise in_use(key)
        self._in_flight.add((account, key))
        return None

    def keep(self, account: str, key: str, reply: Reply) -> None:
        """Keep the answer, in the transaction that holds what the request changed."""
        self._store.put_reply(account, key, reply)

    def end(self, account: str, key: str) -> None:
        """The request is answered, or gone."""
        self._in_flight.discard((account, key))
