"""invoice snapshots, raw events → whether the events, counted and priced again, give the same invoices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import msgspec

from billing_job.invoice.checks import Difference, quantity_differences
from billing_job.invoice.late import Counted, billed_again, corrected_again, counted_for
from billing_job.invoice.pricing import recompute
from billing_job.invoice.usage_reader import Need, Quantities, UsageReader
from ledger.snapshot import InvoiceFixed, canonical_hash
from ledger.view import InvoiceLedger
from schemas.watermark import Watermark


@dataclass(frozen=True, slots=True)
class Verification:
    """recorded, recomputed: hashes of the canonical form. differences: what differs, for people; empty when equal."""

    invoice_id: str
    recorded: str
    recomputed: str
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return self.recorded == self.recomputed and not self.differences


def verify_invoices(ledger: InvoiceLedger, invoices: Sequence[InvoiceFixed], usage: UsageReader) -> list[Verification]:
    """Count each invoice's events again from raw rows, price them by its snapshot, and compare.

    One query counts everything below one watermark. Raises WarehouseUnavailable.
    """
    checks = {fixed.invoice_id: counted_for(ledger, fixed) for fixed in invoices}
    needs: dict[Watermark, dict[str, Need]] = {}
    for check in chain.from_iterable(checks.values()):
        needs.setdefault(check.watermark, {})[check.need.invoice_id] = check.need
    counted = {
        watermark: usage.independent_totals(list(of_watermark.values()), watermark)
        for watermark, of_watermark in needs.items()
    }
    return [_verification(ledger, fixed, checks[fixed.invoice_id], counted, usage) for fixed in invoices]


def _verification(
    ledger: InvoiceLedger,
    fixed: InvoiceFixed,
    checks: Sequence[Counted],
    counted: Mapping[Watermark, Quantities],
    usage: UsageReader,
) -> Verification:
    differences: list[str] = []
    for check in checks:
        unequal = quantity_differences(check, counted[check.watermark][check.need.invoice_id])
        differences += map(str, unequal)
        differences += _faults(usage, check, unequal)
    now = counted.get(fixed.counted_to, {})
    corrections = [corrected_again(ledger, each, now.get(each.corrects, {})) for each in fixed.corrections]
    if fixed.reissue is not None and (billed := billed_again(ledger, fixed)) != fixed.reissue.billed_minor:
        differences.append(
            f"billed on other invoices: {fixed.reissue.billed_minor} invoiced, {billed} by what they say"
        )
    again = recompute(fixed, now.get(fixed.invoice_id, {}), corrections)
    if canonical_hash(fixed) != fixed.hash:
        differences.append("the record in the ledger is not what its hash says")
    differences += [f"{path}: {old} invoiced, {new} recomputed" for path, old, new in unlike(fixed, again)]
    return Verification(fixed.invoice_id, fixed.hash, again.hash, tuple(differences))


def _faults(usage: UsageReader, check: Counted, unequal: Iterable[Difference]) -> Iterator[str]:
    """The rows at fault, where a count is not what was invoiced."""
    names = {each.what.removeprefix(check.of) for each in unequal}
    seen: set[str] = set()
    for meter in check.need.meters:
        if meter.id in names and meter.event_name not in seen:
            seen.add(meter.event_name)
            yield from usage.row_faults(check.need, meter, check.watermark)


def unlike(fixed: InvoiceFixed, again: InvoiceFixed) -> Iterator[tuple[str, object, object]]:
    """Where two invoices differ: `lines.0.amount`, what the one says, what the other says. In the order of fields."""
    skipped = ("hash", "fixed_at", "writer")
    yield from _unlike(
        "", *({k: v for k, v in msgspec.to_builtins(each).items() if k not in skipped} for each in (fixed, again))
    )


def _unlike(path: str, one: object, other: object) -> Iterator[tuple[str, object, object]]:
    if one == other:
        return
    pairs: Iterable[tuple[object, object, object]]
    if isinstance(one, dict) and isinstance(other, dict):
        names = dict.fromkeys([*one, *other])
        pairs = [(name, one.get(name), other.get(name)) for name in names]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = [(place, *both) for place, both in enumerate(zip_longest(one, other))]
    else:
        yield path, one, other
        return
    for name, left, right in pairs:
        yield from _unlike(f"{path}.{name}" if path else str(name), left, right)
