"""The stand-in's world: accounts with their objects, one clock, settings; and a scope through which a request acts.

Everything runs in one thread: a request's handler is atomic, and what it changed is committed to the file together
with the answer kept under its idempotency key.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, Union

import msgspec

from stripe_standin.errors import missing
from stripe_standin.records import KINDS, Invoice, Record, WebhookEndpoint
from stripe_standin.store import Delivery, Store

Json = dict[str, Any]
R = TypeVar("R", bound=Record)

API_VERSION = "2026-10-28.endive"
"""The one version spoken: that which the installed SDK pins (a test holds the two together)."""
ID_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

_random = random.Random()  # seeded by the system; ids of a stand-in need not be secret
_records = msgspec.json.Decoder(type=Union[KINDS])  # noqa: UP007 - made from a tuple


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """Settings of Stripe's dashboard, and switches for tests. GET and POST /_standin/settings."""

    first_attempt_seconds: int = 3600
    """After finalization with auto_advance, until Stripe charges by itself; 0: within the call that finalizes."""
    retry_seconds: list[int] = msgspec.field(default_factory=lambda: [3 * 86400, 5 * 86400, 7 * 86400])
    """Waits before each automatic retry (Stripe: "custom retry schedule", at most three)."""
    after_retries: str = "open"
    """What becomes of an invoice whose retries are exhausted: open or uncollectible."""
    debit_seconds: int = 3 * 86400
    """After a bank debit, until the bank says whether it was honoured."""
    automatic_tax_percent: str = "0"
    search_lag_seconds: int = 60
    rate_limit_per_second: int = 0
    """Requests above it get a 429; 0: no limit."""
    webhook_retry_seconds: float = 1.0
    """Real seconds before the first repeated delivery; doubled after each."""


def new_id(prefix: str, length: int = 24) -> str:
    return prefix + "".join(_random.choices(ID_ALPHABET, k=length))


class Account:
    """The objects of one Stripe account; id is empty for the account that owns the key."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.tables: dict[type[Record], dict[str, Record]] = {kind: {} for kind in KINDS}
        self._children: dict[tuple[type[Record], str], dict[str, None]] = {}

    @property
    def public_id(self) -> str:
        """As addresses of hosted pages spell it."""
        return self.id or "acct_standin"

    def table(self, kind: type[R]) -> dict[str, R]:
        return self.tables[kind]  # pyright: ignore[reportReturnType] - keyed by the kind

    def load(self, record: Record) -> None:
        kind = type(record)
        self.tables[kind][record.id] = record
        if record.parent is not None:
            self._children.setdefault((kind, record.parent), {})[record.id] = None

    def unload(self, record: Record) -> None:
        kind = type(record)
        del self.tables[kind][record.id]
        if record.parent is not None:
            del self._children[kind, record.parent][record.id]

    def by_id(self, id_: str) -> Record | None:
        return next((table[id_] for table in self.tables.values() if id_ in table), None)

    def children(self, kind: type[R], parent: str) -> list[R]:
        """Objects listed under another, oldest first."""
        table = self.table(kind)
        return [table[id_] for id_ in self._children.get((kind, parent), ())]


class World:
    """All accounts, the clock and the settings of one stand-in."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory / "stripe.sqlite")
        self.accounts: dict[str, Account] = {"": Account("")}
        self.settings = msgspec.json.decode(self.store.setting("settings") or b"{}", type=Settings)
        self._offset = int(self.store.setting("clock_offset") or b"0")
        self._frozen_at: int | None = None
        self._due: list[tuple[int, str, str]] = []
        self._scheduled: dict[tuple[str, str], int] = {}
        self._dirty: dict[tuple[str, str], Record | None] = {}
        self._before: dict[tuple[str, str], bytes | None] = {}
        self._outbox_before = 0
        self.outbox: list[Delivery] = []
        """Deliveries that the sender has not seen yet."""
        for account_id, data in self.store.objects():
            record: Record = _records.decode(data)
            self.account(account_id).load(record)
            self._schedule(account_id, record)
        self.outbox += self.store.deliveries()

    def account(self, id_: str) -> Account:
        return self.accounts.setdefault(id_, Account(id_))

    @property
    def now(self) -> int:
        """Seconds since 1970 on the stand-in's clock."""
        return self._frozen_at if self._frozen_at is not None else int(time.time()) + self._offset

    def freeze(self, at: int | None) -> None:
        """Hold the clock at a moment while what is due then is done; None lets it run."""
        self._frozen_at = at

    def advance(self, seconds: int) -> None:
        self._offset += seconds
        self.store.put_setting("clock_offset", str(self._offset).encode())

    def due(self, until: int) -> tuple[int, str, str] | None:
        """The earliest (time, account, invoice) at which an invoice changes without a call, removed from the queue."""
        while self._due and self._due[0][0] <= until:
            at, account, invoice = heapq.heappop(self._due)
            if self._scheduled.get((account, invoice)) == at:
                del self._scheduled[account, invoice]
                return at, account, invoice
        return None

    def remember(self, account: Account, record: Record) -> None:
        """Note how an object looks before a request may change it."""
        key = (account.id, record.id)
        if key not in self._before:
            self._before[key] = msgspec.json.encode(record)

    def put(self, account: Account, record: Record) -> None:
        self._before.setdefault((account.id, record.id), None)  # not seen before: it is new
        account.load(record)
        self._dirty[account.id, record.id] = record
        self._schedule(account.id, record)

    def remove(self, account: Account, record: Record) -> None:
        account.unload(record)
        self._dirty[account.id, record.id] = None

    def _schedule(self, account: str, record: Record) -> None:
        if not isinstance(record, Invoice):
            return
        at = record.next_step_at
        if at is None:
            self._scheduled.pop((account, record.id), None)
        elif self._scheduled.get((account, record.id)) != at:
            self._scheduled[account, record.id] = at
            heapq.heappush(self._due, (at, account, record.id))

    def endpoints(self, account: str) -> list[WebhookEndpoint]:
        """Webhook endpoints that hear of an account's events."""
        own = [e for e in self.account(account).table(WebhookEndpoint).values() if e.connected is not True]
        if account == "":
            return own
        platform = self.account("").table(WebhookEndpoint).values()
        return own + [e for e in platform if e.connected is not False]

    def endpoint(self, id_: str) -> WebhookEndpoint | None:
        found = (a.table(WebhookEndpoint).get(id_) for a in self.accounts.values())
        return next((e for e in found if e is not None), None)

    def rollback(self) -> None:
        """Undo what changed since the last commit."""
        for (account_id, id_), data in self._before.items():
            account = self.account(account_id)
            current = account.by_id(id_)
            if current is not None:
                account.unload(current)
            if data is not None:
                record: Record = _records.decode(data)
                account.load(record)
                self._schedule(account_id, record)
        self._dirty.clear()
        self._before.clear()
        del self.outbox[self._outbox_before :]
        self.store.rollback()

    def commit(self) -> None:
        """Write what changed since the last commit, all or nothing."""
        for (account, id_), record in self._dirty.items():
            if record is None:
                self.store.remove_object(account, id_)
            else:
                self.store.put_object(account, id_, msgspec.json.encode(record))
        self._dirty.clear()
        self._before.clear()
        self._outbox_before = len(self.outbox)
        self.store.commit()


class Scope:
    """One account as one request, or one step that Stripe takes on its own, sees and changes it."""

    def __init__(
        self, world: World, account: Account, request_id: str | None = None, idempotency_key: str | None = None
    ) -> None:
        self.world = world
        self.account = account
        self.now = world.now
        self.request_id = request_id
        self.idempotency_key = idempotency_key

    @property
    def settings(self) -> Settings:
        return self.world.settings

    def find(self, kind: type[R], id_: str) -> R | None:
        """The object, to read or to change; a request that fails leaves it as it was."""
        record = self.peek(kind, id_)
        if record is not None:
            self.world.remember(self.account, record)
        return record

    def peek(self, kind: type[R], id_: str) -> R | None:
        """The object, to read only."""
        return self.account.table(kind).get(id_)

    def get(self, kind: type[R], id_: str, param: str = "id", *, status: int = 404) -> R:
        """The object; raises ApiError resource_missing. status: 404 for one in the path, 400 for one in a parameter."""
        record = self.find(kind, id_)
        if record is None:
            raise missing(kind.NOUN, id_, param, status=status)
        return record

    def shown(self, kind: type[R], id_: str) -> R:
        """An object that another one names, to read only."""
        return self.account.table(kind)[id_]

    def all(self, kind: type[R]) -> Iterable[R]:
        """Oldest first, to read only."""
        return self.account.table(kind).values()

    def children(self, kind: type[R], parent: str) -> list[R]:
        """Objects listed under another, oldest first, to read only."""
        return self.account.children(kind, parent)

    def put(self, record: Record) -> None:
        self.world.put(self.account, record)

    def remove(self, record: Record) -> None:
        self.world.remove(self.account, record)

    def emit(self, type_: str, obj: Json, previous: Json | None = None) -> None:
        """Record an event of a state just reached, and queue it for the webhook endpoints that want it."""
        event: Json = {
            "id": new_id("evt_"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": {"object": obj} if previous is None else {"object": obj, "previous_attributes": previous},
            "livemode": False,
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": type_,
        }
        if self.account.id:
            event["account"] = self.account.id
        store = self.world.store
        store.put_event(self.account.id, event["id"], type_, self.now, msgspec.json.encode(event))
        for endpoint in self.world.endpoints(self.account.id):
            if endpoint.enabled and ("*" in endpoint.enabled_events or type_ in endpoint.enabled_events):
                delivery = Delivery(event["id"], endpoint.id, 0)
                store.put_delivery(delivery)
                self.world.outbox.append(delivery)
