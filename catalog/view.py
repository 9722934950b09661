"""catalog records in log order → the current objects. A pure fold: every reader comes to the same verdict.

A record that expects another version than the current one, or breaks a rule that spans objects (a meter priced twice
for one customer), changes nothing in any view; its writer learns the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

from catalog.overlaps import charged_twice, priced_twice_ever
from catalog.record import MODELS, CatalogObject, CatalogRecord, Topology
from schemas.alert_rule import AlertRule
from schemas.customer import Customer
from schemas.meter import Meter
from schemas.organization import ApiKey, Organization
from schemas.product import Product
from schemas.subscription import Subscription

T = TypeVar("T", bound=CatalogObject)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record was ignored. code: for programs. field: the field at fault; None: not a single field."""

    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Versioned:
    """A current object.

    version: from 1.
    changed_at: µs, of its latest change, by the writer's clock.
    changed_by: who asked for that change; None: the system itself, or an older record.
    """

    state: CatalogObject
    version: int
    changed_at: int = 0
    changed_by: str | None = None


# Fields that never change: another value would change the meaning of past usage.
_IMMUTABLE: dict[type[CatalogObject], tuple[str, ...]] = {
    Meter: ("event_name", "aggregation"),
    Product: ("currency", "prices"),
    Subscription: ("customer_id", "started_at", "billed_from", "billing_interval", "time_zone", "product_id"),
    ApiKey: ("sha256", "scopes"),
    AlertRule: ("meter_id", "customer_id", "kind", "threshold", "alert_existing", "past_cycles"),
    Topology: ("event_partitions",),
}
_REFERENCES: dict[type[CatalogObject], tuple[tuple[str, type[CatalogObject]], ...]] = {
    Subscription: (("customer_id", Customer),),
    AlertRule: (("meter_id", Meter), ("customer_id", Customer)),
}


class CatalogView:
    """The current objects after the records applied so far, with the indexes of hot paths.

    Not locked: one thread applies. Readers see whole values, because index entries are replaced, never changed.
    """

    def __init__(self) -> None:
        self._objects: dict[type[CatalogObject], dict[tuple[str, str], Versioned]] = {m: {} for m in MODELS.values()}
        self._customers = self._objects[Customer]
        self._keys: dict[str, ApiKey] = {}
        self._meters: dict[tuple[str, str], tuple[Meter, ...]] = {}
        self._metered: set[tuple[str, str]] = set()
        self._subscriptions: dict[tuple[str, str], tuple[Subscription, ...]] = {}
        self._rules: dict[tuple[str, str], tuple[AlertRule, ...]] = {}
        self.revision = 0  # grows with every record: values derived at an earlier revision are outdated

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, model: type[T], organization_id: str, object_id: str) -> T | None:
        """The current object, archived ones too; None: it does not exist."""
        found = self._objects[model].get((organization_id, object_id))
        return cast(T, found.state) if found else None

    def version(self, model: type[CatalogObject], organization_id: str, object_id: str) -> int:
        """The object's version; 0: it does not exist."""
        found = self._objects[model].get((organization_id, object_id))
        return found.version if found else 0

    def all(self, model: type[T], organization_id: str | None = None) -> list[T]:
        """Objects of a kind in the order of their creation, of one organization or (None) of all."""
        return [
            cast(T, found.state)
            for (organization, _), found in list(self._objects[model].items())
            if organization_id is None or organization == organization_id
        ]

    def changes(self, organization_id: str) -> list[Versioned]:
        """The latest change of every object of an organization, oldest first."""
        found = [
            versioned
            for objects in self._objects.values()
            for (organization, _), versioned in list(objects.items())
            if organization == organization_id
        ]
        return sorted(found, key=lambda versioned: (versioned.changed_at, versioned.state.id))

    def key_by_digest(self, sha256: str) -> ApiKey | None:
        """The key with that digest; None when unknown or revoked."""
        key = self._keys.get(sha256)
        return None if key is None or key.archived else key

    def meters_reading(self, organization_id: str, event_name: str) -> tuple[Meter, ...]:
        """Meters that read the event_name, without archived ones."""
        return self._meters.get((organization_id, event_name), ())

    def needs_value(self, organization_id: str, event_name: str) -> bool:
        """Whether an event of that name without a value is refused now."""
        return any(meter.aggregation.needs_value for meter in self.meters_reading(organization_id, event_name))

    def has_customer(self, organization_id: str, customer_id: str) -> bool:
        found = self._objects[Customer].get((organization_id, customer_id))
        return found is not None and not found.state.archived

    def counts_live(self, organization_id: str, customer_id: str, event_name: str) -> bool:
        """Whether the series has live totals: customer and meter exist, archived ones too."""
        return (organization_id, customer_id) in self._customers and (organization_id, event_name) in self._metered

    def knows_customer(self, organization_id: str, customer_id: str) -> bool:
        """Whether the customer exists, archived ones too."""
        return (organization_id, customer_id) in self._customers

    def was_metered(self, organization_id: str, event_name: str) -> bool:
        """Whether a meter reads the event_name, or did before it was archived."""
        return (organization_id, event_name) in self._metered

    def subscriptions_of(self, organization_id: str, customer_id: str) -> tuple[Subscription, ...]:
        """All of a customer's subscriptions, ended ones too."""
        return self._subscriptions.get((organization_id, customer_id), ())

    def rules_on(self, organization_id: str, meter_id: str) -> tuple[AlertRule, ...]:
        """Alert rules on a meter, also those for one customer; without archived ones."""
        return self._rules.get((organization_id, meter_id), ())

    def organization(self, organization_id: str) -> Organization | None:
        return self.get(Organization, organization_id, organization_id)

    def meters_of(self, organization_id: str, product_ids: Iterable[str]) -> frozenset[str]:
        """Meter ids that any of the products prices."""
        products = (self.get(Product, organization_id, product_id) for product_id in product_ids)
        return frozenset(meter_id for product in products if product for meter_id in product.meter_ids)

    def meters_priced(self, subscription: Subscription, from_us: int) -> frozenset[str]:
        """Meter ids that the subscription's products price from from_us (µs) on."""
        charged = (span.product_id for span in subscription.spans if from_us < span.until_us)
        return self.meters_of(subscription.organization_id, charged)

    # -- writing ---------------------------------------------------------------------------------------------------

    def refusal(self, record: CatalogRecord) -> Refusal | None:
        """Why the record would be ignored if it were the next in the log; None: it would be valid."""
        state, model = record.state, type(record.state)
        found = self._objects[model].get((state.organization_id, state.id))
        version = found.version if found else 0
        if record.expected_version != version:
            problem = "already exists" if record.expected_version == 0 else f"is at version {version}"
            return Refusal("version_conflict", f"{record.kind} {state.id} {problem}; read it again", None)
        if found is not None:
            for name in _IMMUTABLE.get(model, ()):
                if getattr(found.state, name) != getattr(state, name):
                    return Refusal("immutable_field", f"{name} of a {record.kind} never changes; make a new one", name)
        for name, referred in _REFERENCES.get(model, ()):
            wanted: str | None = getattr(state, name)
            if wanted is not None and found is None and not self._in_force(referred, state.organization_id, wanted):
                return Refusal(
                    "unknown_reference", f'there is no {name.removesuffix("_id")} with the ID "{wanted}"', name
                )
        if isinstance(state, Product) and found is None:
            return self._product_refusal(state)
        if isinstance(state, Subscription):
            return self._subscription_refusal(record, state)
        if isinstance(state, ApiKey) and found is None and state.sha256 in self._keys:
            return Refusal("version_conflict", "that secret is another key's", None)
        return None

    def apply(self, record: CatalogRecord) -> Refusal | None:
        """Fold the log's next record in, and return its verdict: None when it is valid, else the refusal."""
        self.revision += 1
        if refusal := self.refusal(record):
            return refusal
        state = record.state
        before = self.get(type(state), state.organization_id, state.id)
        if isinstance(state, Subscription):
            kept = before.zone_changes if isinstance(before, Subscription) else ()
            state = state.model_copy(update={"zone_changes": kept})
        self._put(state, record.expected_version + 1, record.written_at, record.by)
        if isinstance(state, Organization) and isinstance(before, Organization) and before.time_zone != state.time_zone:
            self._change_zone(state, record.written_at)
        return None

    def _put(self, state: CatalogObject, version: int, changed_at: int, changed_by: str | None) -> None:
        self._objects[type(state)][state.organization_id, state.id] = Versioned(state, version, changed_at, changed_by)
        self._index(state)

    def _change_zone(self, organization: Organization, at_us: int) -> None:
        """Existing subscriptions have their cycles in the new zone from their next cycle on."""
        for subscription in self.all(Subscription, organization.id):
            last = subscription.zone_changes[-1][0] if subscription.zone_changes else at_us
            changes = (*subscription.zone_changes, (max(at_us, last), organization.time_zone))
            before = self._objects[Subscription][organization.id, subscription.id]
            moved = subscription.model_copy(update={"zone_changes": changes})
            self._put(moved, before.version, before.changed_at, before.changed_by)

    def _in_force(self, model: type[CatalogObject], organization_id: str, object_id: str) -> bool:
        found = self._objects[model].get((organization_id, object_id))
        return found is not None and not found.state.archived

    def _product_refusal(self, product: Product) -> Refusal | None:
        for index, price in enumerate(product.prices):
            meter_id: str | None = getattr(price, "meter_id", None)
            if meter_id is not None and not self._in_force(Meter, product.organization_id, meter_id):
                return Refusal(
                    "unknown_reference", f'there is no meter with the ID "{meter_id}"', f"prices.{index}.meter_id"
                )
        return None

    def _subscription_refusal(self, record: CatalogRecord, subscription: Subscription) -> Refusal | None:
        for product_id in subscription.product_ids:
            if self.get(Product, subscription.organization_id, product_id) is None:
                return Refusal("unknown_reference", f"there is no product {product_id}", "product_id")
        products = (
            self.get(Product, subscription.organization_id, product_id) for product_id in subscription.product_ids
        )
        if len({product.currency for product in products if product is not None}) > 1:
            return Refusal(
                "currency_differs", "a subscription is billed in one currency: begin another one instead", "product_id"
            )
        others = [
            other
            for other in self.subscriptions_of(subscription.organization_id, subscription.customer_id)
            if other.id != subscription.id
        ]
        if record.rules == 1:
            twice = priced_twice_ever(self, subscription, others)
        else:
            before = self.get(Subscription, subscription.organization_id, subscription.id)
            twice = charged_twice(self, subscription, others, before)
        return None if twice is None else Refusal(twice.code, twice.message, "product_id")

    def _index(self, state: CatalogObject) -> None:
        organization_id = state.organization_id
        match state:
            case ApiKey():
                self._keys[state.sha256] = state
            case Meter():
                key = (organization_id, state.event_name)
                self._meters[key] = _replaced(self._meters.get(key, ()), state, keep=not state.archived)
                self._metered.add(key)
            case Subscription():
                key = (organization_id, state.customer_id)
                self._subscriptions[key] = _replaced(self._subscriptions.get(key, ()), state, keep=True)
            case AlertRule():
                key = (organization_id, state.meter_id)
                self._rules[key] = _replaced(self._rules.get(key, ()), state, keep=not state.archived)
            case _:
                pass


def _replaced(entries: Iterable[T], state: T, *, keep: bool) -> tuple[T, ...]:
    """The entries with `state` in place of the entry of its id, or at the end; without it unless `keep`."""
    others = list(entries)
    at = next((i for i, entry in enumerate(others) if entry.id == state.id), len(others))
    others[at : at + 1] = [state] if keep else []
    return tuple(others)
