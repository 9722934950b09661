"""catalog, ledger, quantities below a watermark → what invoices say now: closes, previews and simulations alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from billing_job.invoice.due import DueCycle
from billing_job.invoice.late import SubscriptionKey, UsageSource, last_hash, reissued_by, true_ups
from billing_job.invoice.pricing import NO_TRUE_UP, PricedBy, TrueUp, fixed_invoice, seller_of
from billing_job.invoice.usage_reader import Need
from catalog.view import CatalogView
from ledger.snapshot import FIRST_REVISION, InvoiceFixed
from ledger.view import InvoiceLedger
from schemas.meter import Meter
from schemas.organization import Organization
from schemas.product import Product
from schemas.subscription import Subscription
from schemas.watermark import Watermark


def trues_up(view: CatalogView, organization_id: str) -> bool:
    """Whether the organization bills usage that came late."""
    organization = view.organization(organization_id)
    return organization is not None and organization.late_policy == "next_invoice"


def build_snapshots(
    view: CatalogView,
    ledger: InvoiceLedger,
    usage: UsageSource,
    due: Sequence[DueCycle],
    watermark: Watermark,
    *,
    now_us: int,
    writer: str,
) -> list[InvoiceFixed]:
    """What each invoice says by catalog and ledger of now and the events below the watermark. due: oldest first.

    A final invoice is left out while its subscription can't be looked at. Writes nothing. Raises WarehouseUnavailable.
    """
    products: dict[tuple[str, str], PricedBy] = {}
    configured = {each.invoice_id: _configured(view, each, products) for each in due}
    needs = [
        Need(
            each.invoice_id,
            each.organization_id,
            each.customer_id,
            each.cycle.start_us,
            each.active_until,
            () if each.final else tuple(configured[each.invoice_id].priced_by.meters.values()),
        )
        for each in due
    ]
    quantities = usage.totals(needs, watermark)
    late = true_ups(
        ledger,
        usage,
        due,
        watermark,
        trues_up=lambda organization: trues_up(view, organization),
        currency_of=lambda each: configured[each.invoice_id].priced_by.product.currency,
    )
    watermark_json = watermark.as_json()
    made: list[InvoiceFixed] = []
    before: dict[SubscriptionKey, str] = {}  # the last one made here
    for each in due:
        key = (each.organization_id, each.subscription_id)
        true_up = late.get(key, NO_TRUE_UP)
        if each.final and not true_up.complete:
            continue
        if each.revision != FIRST_REVISION:
            follows = before[key] if key in before else last_hash(ledger, key)
            true_up = replace(true_up, follows=follows, reissue=reissued_by(ledger, each))
        of_catalog = configured[each.invoice_id]
        fixed = fixed_invoice(
            each,
            priced_by=of_catalog.priced_by,
            quantities=quantities[each.invoice_id],
            watermark=watermark_json,
            seller=seller_of(of_catalog.organization, of_catalog.subscription),
            time_zone=of_catalog.subscription.calendar.zone_at(each.cycle.start_us),
            now_us=now_us,
            writer=writer,
            true_up=true_up,
        )
        if true_up.complete:  # counted at this watermark: the next one of this run has nothing to correct
            late[key] = TrueUp(complete=True, follows=fixed.hash)
        before[key] = fixed.hash
        made.append(fixed)
    return made


@dataclass(frozen=True, slots=True)
class _Configured:
    """What the catalog says of a cycle."""

    organization: Organization
    subscription: Subscription
    priced_by: PricedBy


def _configured(view: CatalogView, due: DueCycle, known: dict[tuple[str, str], PricedBy]) -> _Configured:
    """known: products that were looked up, by organization and id."""
    organization = view.organization(due.organization_id)
    subscription = view.get(Subscription, due.organization_id, due.subscription_id)
    # The catalog takes no subscription without a product, and no product without its meters.
    assert organization is not None
    assert subscription is not None
    key = (due.organization_id, due.product_id)
    if key not in known:
        product = view.get(Product, *key)
        assert product is not None
        known[key] = PricedBy(product, {meter_id: _meter(view, key[0], meter_id) for meter_id in product.meter_ids})
    return _Configured(organization, subscription, known[key])


def _meter(view: CatalogView, organization_id: str, meter_id: str) -> Meter:
    found = view.get(Meter, organization_id, meter_id)
    assert found is not None
    return found
