"""Faults to order: what goes wrong with which of the next requests.

`before`: the request is not carried out. `after`: it is carried out, and its answer is lost or replaced.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Literal

import msgspec

Kind = Literal[
    "429",
    "409",
    "500_before",
    "500_after",
    "reset_before",
    "reset_after",
    "timeout_before",
    "timeout_after",
    "delay",
    "error",
]


class Fault(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /_standin/faults."""

    kind: Kind
    method: str = "*"
    path: str = "*"
    """`*` stands for anything, as in /v1/invoices/*/finalize."""
    account: str | None = None
    """The Stripe-Account that it is for; None: any."""
    skip: int = 0
    """Requests that match and pass before the first fault."""
    times: int = 1
    """How many requests it hits; 0: every one."""
    kept: bool | None = None
    """Whether the answer is kept under the idempotency key. None: as Stripe documents, 500 yes, 429 and 409 no."""
    seconds: float = 30.0
    """How long a time-out holds the connection before it closes it without an answer, or a delay delays."""
    status: int = 400
    """For kind error: status, and type, code and message of the error's body."""
    type: str = "invalid_request_error"
    code: str | None = None
    message: str = "An error that was ordered."
    hits: int = 0
    """How often it has hit."""

    @property
    def before(self) -> bool:
        return not self.kind.endswith("_after")

    @property
    def keeps(self) -> bool:
        return self.kept if self.kept is not None else self.kind.startswith("500")


class Faults:
    """Faults in the order in which they were ordered; the first that matches a request hits it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def order(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        self._faults.clear()

    @property
    def listed(self) -> list[Fault]:
        return self._faults

    def hit(self, method: str, path: str, account: str) -> Fault | None:
        """The fault for a request, counted."""
        for fault in self._faults:
            matches = (
                fault.method in ("*", method)
                and re.fullmatch(translate(fault.path), path) is not None
                and fault.account in (None, account)
                and (fault.times == 0 or fault.hits < fault.times)
            )
            if not matches:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.hits += 1
            return fault
        return None
