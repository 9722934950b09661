"""a draft at Stripe → the same with every item of its invoice, each once.

Earlier code sent an item for every line. A draft with such items is deleted and created again.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from billing_job.collect.steps import (
    ATTEMPTS_MAX,
    Begun,
    Billing,
    InvoiceStopped,
    Outcome,
    begin,
    done,
    failed,
    may_be_done,
)
from billing_job.stripe.api import Json
from billing_job.stripe.errors import StripeFailure, StripeReplayed
from billing_job.stripe.line_groups import is_grouped, item_lines
from billing_job.stripe.objects import LINE, LINES, invoice_key, item_metadata, item_params, metadata_of, of_invoice
from ledger.invoice import StepKey
from ledger.records import InvoiceStep
from ledger.snapshot import InvoiceFixed

log = structlog.get_logger(__name__)


def has_other_items(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str) -> bool:
    """Whether items that the invoice does not have were begun, or are there, on a draft of which items are grouped."""
    if not is_grouped(fixed):
        return False
    wanted = item_lines(fixed)
    steps = billing.invoice(fixed.invoice_id).steps
    # Code that sends every line begins all of them before the first call, so one that can't be ours is among them.
    if any(name == "item" and index not in wanted and step.phase != "failed" for (name, index), step in steps.items()):
        return True
    marks = [item_metadata(index, lines) for index, lines in wanted.items()]
    present = of_invoice(billing.api.items_of(stripe_invoice_id, fixed.seller.stripe_account_id), fixed.invoice_id)
    return any(
        {name: text for name, text in metadata_of(item).items() if name in (LINE, LINES)} not in marks
        for item in present
    )


def put_items(
    billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str, stripe_customer_id: str, *, fresh: bool
) -> None:
    """Every item of the invoice on the draft, once."""
    present = {} if fresh else _present(billing, fixed, stripe_invoice_id)
    steps = billing.invoice(fixed.invoice_id).steps
    missing: list[StepKey] = []
    for index in item_lines(fixed):
        known = steps.get(("item", index))
        if known is None or known.phase != "done":
            missing.append(("item", index))
    begun = begin(billing, fixed, missing)
    records: list[InvoiceStep] = []
    try:
        for key in missing:
            item, attempt = present.get(key[1]), begun[key].attempt
            if item is None:
                params = item_params(fixed, key[1], stripe_invoice_id, stripe_customer_id)
                item, attempt = _item(billing, fixed, key, begun[key], params)
            records.append(done(billing, fixed, key, attempt, Outcome(item)))
    finally:
        billing.log.append_all(records)


def _item(billing: Billing, fixed: InvoiceFixed, key: StepKey, begun: Begun, params: Json) -> tuple[Json, int]:
    """The item, and the attempt that made it."""
    for _ in range(ATTEMPTS_MAX):
        idempotency_key = invoice_key(fixed.invoice_id, *key, begun.attempt)
        try:
            made = billing.api.create_item(
                params, fixed.seller.stripe_account_id, idempotency_key, may_have_run=not begun.fresh
            )
            return made, begun.attempt
        except StripeFailure as failure:
            found = _present(billing, fixed, params["invoice"]).get(key[1]) if may_be_done(failure) else None
            if found is not None:
                return found, begun.attempt
            failed(billing, fixed, key, begun, failure)
            if not isinstance(failure, StripeReplayed):
                raise
        begun = begin(billing, fixed, [key])[key]
    raise InvoiceStopped("item: Stripe keeps answering with an error of its own")


def _present(billing: Billing, fixed: InvoiceFixed, stripe_invoice_id: str) -> Mapping[int, Json]:
    """Index → the item on the draft. A second one of an index, left by runs that overtook one another, is removed."""
    account = fixed.seller.stripe_account_id
    present: dict[int, Json] = {}
    for item in of_invoice(billing.api.items_of(stripe_invoice_id, account), fixed.invoice_id):
        line = int(metadata_of(item).get(LINE, "-1"))
        if line in present:
            log.warning("second_item", invoice=fixed.invoice_id, line=line, item=item["id"])
            billing.api.delete_item(item["id"], account)
        else:
            present[line] = item
    return present
