"""rows → customers or subscriptions of the catalog: checked against its view and one another, then written.

The checks are those of the API. A row has the same ID whenever it is imported, so what is there already is known.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
from pydantic import BaseModel, ValidationError

from catalog.record import CatalogRecord
from catalog.store import CatalogConflict, CatalogStore, CatalogUnavailable
from catalog.view import CatalogView, Refusal
from dashboard import subscriptions as lifecycle
from dashboard.customer_changes import require_reachable
from dashboard.problems import invalid_request
from dashboard.writes import is_same_request, object_id
from runtime.problem import Problem
from schemas.customer import Address, Customer, CustomerSpec
from schemas.product import Product
from schemas.subscription import Subscription, SubscriptionSpec
from usage_billing.importing.check import LineError
from usage_billing.importing.mapping import WrongMapping, instant
from usage_billing.importing.tables import Row

_UNDER_WAY_MAX = 5_000
_SECONDS_MAX = 30.0
_TAX_ID = ("tax_id.type", "tax_id.value")
Object = Customer | Subscription


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column a field is in, what is the same for every row, and columns that are left out."""

    renames: Mapping[str, str] = field(default_factory=dict[str, str])
    constants: Mapping[str, str] = field(default_factory=dict[str, str])
    ignored: frozenset[str] = frozenset()

    def column_of(self, of_field: str) -> str:
        return self.renames.get(of_field, of_field)

    def cells(self, row: Row) -> dict[str, str]:
        """The row by fields."""
        to_field = {column: name for name, column in self.renames.items()}
        kept = {to_field.get(name, name): cell for name, cell in row.cells.items() if name not in self.ignored}
        return {**kept, **{f"properties.{name}": cell for name, cell in row.properties.items()}, **self.constants}

    def check(self, columns: Sequence[str] | None, fields: frozenset[str]) -> None:
        """Raises WrongMapping for a name that is no field, or no column of the file (None: each row has its own)."""
        for name in (*self.renames, *self.constants):
            if name not in fields:
                raise WrongMapping(f"{name} is no field; there are {', '.join(sorted(fields))}")
        if columns is None:
            return
        for column in (*self.renames.values(), *self.ignored):
            if column not in columns:
                raise WrongMapping(f"there is no column {column}; there are {', '.join(columns)}")
        to_field = {column: name for name, column in self.renames.items()}
        unknown = [name for name in columns if name not in self.ignored and to_field.get(name, name) not in fields]
        if unknown:
            raise WrongMapping(
                f"columns that are no fields: {', '.join(unknown)} "
                "(--map FIELD=COLUMN names a field's column, --ignore COLUMN leaves one out)"
            )


@dataclass(slots=True)
class Checked:
    """What a file comes to. new: line and object, in order. present: rows whose object exists already."""

    new: list[tuple[int, Object]] = field(default_factory=list[tuple[int, Object]])
    present: int = 0


class Importer(ABC):
    """Makes objects of one kind of rows. view: a copy that this may change, since rows refer to one another."""

    fields: frozenset[str]

    def __init__(self, view: CatalogView, organization_id: str, now: int, zone: ZoneInfo | None = None) -> None:
        self._view = view
        self._organization_id = organization_id
        self._now = now
        self._zone = zone
        self._alike: Counter[str] = Counter()
        self._backdate = False  # of the row at hand

    @abstractmethod
    def made(self, cells: dict[str, str]) -> Object:
        """The object of a row. Raises Problem with the fields that are wrong."""

    @abstractmethod
    def check_new(self, state: Object) -> None:
        """Raises Problem where it may not be created."""

    def is_same(self, existing: Object, state: Object) -> bool:
        return is_same_request(existing, state)

    def check(
        self, rows: Iterable[Row], columns: Columns, errors: list[LineError], *, skip_existing: bool = False
    ) -> Checked:
        """Every row; what is wrong is appended to errors. Raises UnreadableTable, WrongMapping."""
        found = Checked()
        for row in rows:
            try:
                cells = columns.cells(row)
                unknown = [name for name in cells if name not in self.fields]
                if unknown:
                    raise _wrong(unknown[0], "extra_forbidden", "there is no such field")
                state = self.made(cells)
                existing = self._view.get(type(state), state.organization_id, state.id)
                if existing is not None:
                    self._check_existing(existing, state, skip_existing=skip_existing)
                    found.present += 1
                    continue
                self.check_new(state)
                refusal = self._view.apply(CatalogRecord(state, 0, self._now))
                if refusal is not None:
                    raise _refused(refusal)
            except Problem as problem:
                errors += _line_errors(row.line, columns, problem)
            else:
                found.new.append((row.line, state))
        return found

    def _check_existing(self, existing: Object, state: Object, *, skip_existing: bool) -> None:
        if skip_existing or self.is_same(existing, state):
            return
        before, after = existing.model_dump(), state.model_dump()
        differing = [name for name in after if before[name] != after[name] and name != "created_at"]
        raise _wrong(
            differing[0] if differing else None,
            "exists_differently",
            f"{state.id} exists with another {', '.join(differing)}; --skip-existing leaves it as it is",
        )

    def _id(self, kind: str, *content: str) -> str:
        digest = hashlib.sha256(msgspec.json.encode(content)).hexdigest()
        return object_id(kind, self._organization_id, f"import/{digest}")


class CustomerImporter(Importer):
    """Fields of the API's customers. address.country and the like, tax_id.type and tax_id.value may be columns."""

    fields = frozenset({*CustomerSpec.model_fields, *(f"address.{name}" for name in Address.model_fields), *_TAX_ID})

    def made(self, cells: dict[str, str]) -> Customer:
        fields: dict[str, Any] = {name: cell for name, cell in cells.items() if "." not in name}
        for name in ("address", "tax_ids"):
            if name in fields:
                fields[name] = _json(name, fields[name])
        address = {name.removeprefix("address."): cell for name, cell in cells.items() if name.startswith("address.")}
        if address:
            fields["address"] = {**fields.get("address", {}), **address}
        tax_id = {name.removeprefix("tax_id."): cells[name] for name in _TAX_ID if name in cells}
        if tax_id:
            fields["tax_ids"] = [*fields.get("tax_ids", []), tax_id]
        try:
            spec = _valid(CustomerSpec, fields)
        except Problem as problem:
            raise _in_own_columns(problem) if tax_id else problem from None
        values = spec.model_dump()
        own_id = values.pop("id")
        if own_id is None:
            content = msgspec.json.encode(values, order="sorted").decode()
            own_id = self._id("customer", content, str(self._alike[content]))
            self._alike[content] += 1
        return Customer(**values, id=own_id, organization_id=self._organization_id, created_at=self._now)

    def check_new(self, state: Object) -> None:
        """A customer refers to no other object."""


class SubscriptionImporter(Importer):
    """Fields of the API's subscriptions. A subscription is known by its customer, product and start."""

    fields = frozenset(SubscriptionSpec.model_fields)

    def made(self, cells: dict[str, str]) -> Subscription:
        fields: dict[str, Any] = dict(cells)
        for name in ("started_at", "billed_from"):
            if name in fields:
                fields[name] = instant(fields[name], self._zone)
        if "backdate" in fields:
            fields["backdate"] = fields["backdate"].lower()
        spec = _valid(SubscriptionSpec, fields)
        self._backdate = spec.backdate
        organization = self._view.organization(self._organization_id)
        assert organization is not None
        subscription = lifecycle.begun(
            spec,
            subscription_id="sub",
            organization_id=self._organization_id,
            time_zone=organization.time_zone,
            now=self._now,
        )
        start = "" if spec.started_at is None else str(subscription.started_at)
        own_id = self._id("subscription", spec.customer_id, spec.product_id, start)
        return subscription.model_copy(update={"id": own_id})

    def check_new(self, state: Object) -> None:
        assert isinstance(state, Subscription)
        customer = self._view.get(Customer, self._organization_id, state.customer_id)
        if customer is None or customer.archived:
            raise _wrong("customer_id", "unknown_reference", f"there is no customer {state.customer_id} in force")
        require_reachable(customer, state.collection_method)
        product = self._view.get(Product, self._organization_id, state.product_id)
        if product is None or product.archived:
            raise _wrong("product_id", "unknown_reference", f"there is no product {state.product_id} in force")
        lifecycle.require_billed_from(state, self._now)
        lifecycle.require_backdate(state, backdate=self._backdate, now=self._now)

    def is_same(self, existing: Object, state: Object) -> bool:
        """Whatever became of it since: a change of product, its end. What a row says never changes."""
        assert isinstance(existing, Subscription)
        assert isinstance(state, Subscription)
        return (existing.billed_from, existing.billing_interval) == (state.billed_from, state.billing_interval)


def _valid(spec: type[BaseModel], fields: dict[str, Any]) -> Any:
    try:
        return spec.model_validate(fields)
    except ValidationError as error:
        raise invalid_request(error.errors(), fields) from None


def _json(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise _wrong(name, "invalid_json", f"JSON is expected, as in the API: {error}") from None


def _wrong(of_field: str | None, code: str, message: str) -> Problem:
    return Problem(422, code, message, [{"field": of_field, "code": code, "message": message}])


def _refused(refusal: Refusal) -> Problem:
    return _wrong(refusal.field, refusal.code, refusal.message)


def _line_errors(line: int, columns: Columns, problem: Problem) -> Iterator[LineError]:
    for error in problem.errors:
        of_field = error["field"]
        name = None if of_field is None else columns.column_of(str(of_field))
        yield LineError(line, name, str(error["code"]), str(error["message"]))


def _in_own_columns(problem: Problem) -> Problem:
    """The tax ID's errors where its columns are: tax_ids.0.value is tax_id.value, and so is what both make wrong."""

    def renamed(of_field: str | None) -> str | None:
        if of_field is None or not of_field.startswith("tax_ids"):
            return of_field
        return "tax_id.type" if of_field.endswith(".type") else "tax_id.value"

    errors = [{**error, "field": renamed(error["field"])} for error in problem.errors]
    return Problem(problem.status, problem.code, problem.detail, errors)


def write_objects(
    store: CatalogStore, new: Iterable[tuple[int, Object]], errors: list[LineError], progress: Callable[[int], None]
) -> int:
    """Write them, many at a time; how many are in force by this. What lost to another writer is appended to errors.

    Raises CatalogUnavailable: whether some of them are written is unknown then, and importing again is safe.
    """
    under_way: deque[tuple[int, Future[Refusal | None]]] = deque()
    written = 0

    def settle() -> None:
        nonlocal written
        line, fate = under_way.popleft()
        try:
            refusal = fate.result(_SECONDS_MAX)
        except TimeoutError as error:
            raise CatalogUnavailable("the catalog's log did not answer in time") from error
        if refusal is None:
            written += 1
        else:
            errors.append(LineError(line, refusal.field, refusal.code, refusal.message))
        progress(1)

    for line, state in new:
        try:
            under_way.append((line, store.submit(state, 0)))
        except CatalogConflict as conflict:
            errors.append(LineError(line, conflict.refusal.field, conflict.refusal.code, conflict.refusal.message))
        if len(under_way) >= _UNDER_WAY_MAX:
            settle()
    while under_way:
        settle()
    return written
