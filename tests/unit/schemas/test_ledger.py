"""Records of the ledger: their JSON, and the fold that every reader agrees on."""

import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from schemas.ledger import (
    InvoiceFixed,
    InvoiceLedger,
    InvoiceStep,
    LedgerRecord,
    Line,
    OrderRecorded,
    Phase,
    Seller,
    StepName,
    StripeCustomer,
    StripeInvoice,
    UnreadableLedgerRecord,
    benefits_state,
    canonical_hash,
    decode,
    encode,
    invoice_id,
    order_id,
    record_key,
    with_hash,
)
from schemas.partition import customer_key
from schemas.watermark import Watermark

DAY_US = 86_400_000_000
ID = invoice_id("default", "sub_1", 0)


def fixed(**changes: Any) -> InvoiceFixed:
    line = Line(
        meter_id="mtr_1",
        price_index=0,
        model="per_unit",
        description="Calls: 10 calls",
        quantity="10",
        included="0",
        priced_quantity="10",
        amount="1.00",
        amount_minor=100,
    )
    values: dict[str, Any] = {
        "invoice_id": ID,
        "organization_id": "default",
        "customer_id": "c",
        "subscription_id": "sub_1",
        "revision": 1,
        "cycle_start": 0,
        "cycle_end": 30 * DAY_US,
        "active_until": 30 * DAY_US,
        "time_zone": "UTC",
        "currency": "eur",
        "lines": (line,),
        "total": "1.00",
        "total_minor": 100,
        "watermark": Watermark(1, {0: 5, 1: 7}).as_json(),
        "product": {},
        "meters": (),
        "seller": Seller("charge_automatically"),
        "hash": "",
        "fixed_at": 40 * DAY_US,
        "writer": "a",
    }
    return with_hash(InvoiceFixed(**{**values, **changes}))


def seen(status: str, **changes: Any) -> StripeInvoice:
    values: dict[str, Any] = {
        "id": "in_1",
        "status": status,
        "subtotal_minor": 100,
        "total_minor": 100,
        "amount_due_minor": 100,
        "amount_paid_minor": 100 if status == "paid" else 0,
        "seen_at": 1,
    }
    return StripeInvoice(**{**values, **changes})


def step(name: StepName, phase: Phase, **more: Any) -> InvoiceStep:
    more.setdefault("at", 1)
    return InvoiceStep(invoice_id=ID, organization_id="default", customer_id="c", step=name, phase=phase, **more)


def order(**changes: Any) -> OrderRecorded:
    values: dict[str, Any] = {
        "order_id": order_id(ID),
        "invoice_id": ID,
        "organization_id": "default",
        "customer_id": "c",
        "subscription_id": "sub_1",
        "currency": "eur",
        "amount_paid": "1.00",
        "amount_paid_minor": 100,
        "paid_at": 2,
        "recorded_at": 3,
    }
    return OrderRecorded(**{**values, **changes})


def folded(*records: LedgerRecord) -> tuple[InvoiceLedger, list[bool]]:
    ledger = InvoiceLedger()
    return ledger, [ledger.apply(record) for record in records]


FAILED = seen("open", attempted=True, attempt_count=1, next_payment_attempt=3 * DAY_US)
DRAFTED = (fixed(), step("draft", "intent"), step("draft", "done", object_id="in_1", stripe=seen("draft")))
FINALIZED = (
    *DRAFTED,
    step("gate", "done"),
    step("finalize", "intent"),
    step("finalize", "done", stripe=seen("open")),
)
PAID = (*FINALIZED, step("pay", "intent"), step("pay", "done", stripe=seen("paid")), order())


@pytest.mark.parametrize(
    "record",
    [
        fixed(),
        step("draft", "done", object_id="in_1", stripe=FAILED),
        order(),
        StripeCustomer("default", "c", "done", 1, stripe_customer_id="cus_1"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_survives_its_json(record: LedgerRecord) -> None:
    message = encode(record)
    assert decode(message) == record
    assert msgspec.json.decode(message)["kind"]


@pytest.mark.parametrize("message", [b"", b"{", b"{}", b'{"kind":"other"}', b'{"kind":"invoice_step"}', b"\xff"])
def test_what_is_no_record_is_refused(message: bytes) -> None:
    with pytest.raises(UnreadableLedgerRecord):
        decode(message)


def test_the_watermark_comes_back_as_it_was() -> None:
    assert fixed().counted_to == Watermark(1, {0: 5, 1: 7})


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"fixed_at": 1, "writer": "b"}, True),
        ({"total_minor": 101}, False),
        ({"watermark": Watermark(1, {0: 6, 1: 7}).as_json()}, False),
        ({"seller": Seller("send_invoice")}, False),
    ],
)
def test_the_hash_is_of_what_the_invoice_says(changes: dict[str, Any], same: bool) -> None:
    assert (canonical_hash(fixed(**changes)) == canonical_hash(fixed())) is same


@pytest.mark.parametrize(
    ("records", "state", "reason"),
    [
        (DRAFTED[:1], "computed", None),
        (DRAFTED, "draft", None),
        (FINALIZED, "open", None),
        (PAID, "paid", None),
        (
            (*FINALIZED, step("pay", "intent"), step("pay", "done", stripe=FAILED, reason="insufficient_funds")),
            "payment_failed",
            "insufficient_funds",
        ),
        ((*FINALIZED, step("observe", "done", stripe=FAILED)), "payment_failed", None),
        ((*FINALIZED, step("observe", "done", stripe=seen("uncollectible"))), "uncollectible", None),
        ((*FINALIZED, step("observe", "done", stripe=seen("void"))), "void", None),
        # Facts of another Stripe invoice are not this one's.
        ((*FINALIZED, step("observe", "done", stripe=seen("paid", id="in_2"))), "open", None),
        # What was read earlier arrives later.
        ((*PAID, step("observe", "done", stripe=seen("open"))), "paid", None),
        (
            (*FINALIZED, step("observe", "done", stripe=FAILED), step("observe", "done", stripe=seen("open"))),
            "payment_failed",
            None,
        ),
        ((*PAID, step("observe", "done", stripe=seen("void"))), "paid", None),
        # An uncollectible invoice may be paid after all.
        (
            (
                *FINALIZED,
                step("observe", "done", stripe=seen("uncollectible")),
                step("observe", "done", stripe=seen("paid")),
            ),
            "paid",
            None,
        ),
        ((fixed(), step("gate", "failed", reason="5 and 6")), "mismatch", "5 and 6"),
        ((*DRAFTED, step("gate", "failed", reason="5 and 6"), step("gate", "done")), "draft", None),
        # What is held stays held while its draft is looked at.
        (
            (
                *DRAFTED,
                step("gate", "failed", reason="5 and 6"),
                step("observe", "done", stripe=seen("draft", seen_at=9)),
            ),
            "mismatch",
            "5 and 6",
        ),
        ((fixed(total="0.00", total_minor=0, lines=()), step("gate", "done")), "computed", None),
        ((fixed(total="0.00", total_minor=0, lines=()), order(amount_paid="0.00", amount_paid_minor=0)), "paid", None),
        (
            (*DRAFTED, step("finalize", "intent"), step("finalize", "failed", reason="no address")),
            "draft",
            "no address",
        ),
        # Nothing of an invoice counts before it is fixed.
        ((step("draft", "intent"), *DRAFTED[:1]), "computed", None),
        (
            (step("wait", "failed", reason="lag", subscription_id="sub_1", cycle_start=0, cycle_end=DAY_US),),
            "waiting",
            "lag",
        ),
        (
            (step("wait", "failed", reason="lag", subscription_id="sub_1", cycle_start=0, cycle_end=DAY_US), fixed()),
            "computed",
            None,
        ),
        # A draft that was deleted at Stripe is to be made again.
        ((*DRAFTED, step("discard", "done", object_id="in_1", reason="deleted")), "computed", "deleted"),
        ((*DRAFTED, step("discard", "done", object_id="in_2")), "draft", None),
        ((*FINALIZED, step("discard", "done", object_id="in_1")), "open", None),
    ],
)
def test_state_follows_from_the_records(records: tuple[LedgerRecord, ...], state: str, reason: str | None) -> None:
    invoice = folded(*records)[0].invoices[ID]
    assert (invoice.state, invoice.reason) == (state, reason)
    assert invoice.document()["state"] == state


def test_the_first_record_of_an_invoice_fixes_it() -> None:
    ledger, won = folded(fixed(), fixed(total="2.00", total_minor=200, writer="b"))
    assert won == [True, False]
    invoice = ledger.invoices[ID]
    assert invoice.fixed is not None
    assert (invoice.fixed.writer, invoice.document()["total"]) == ("a", "1.00")


def test_the_first_draft_recorded_is_the_one_in_use() -> None:
    ledger, won = folded(*DRAFTED, step("draft", "done", object_id="in_2", stripe=seen("draft", id="in_2")))
    assert won[-1] is False
    assert ledger.invoices[ID].stripe_invoice_id == "in_1"
    assert ledger.by_stripe_id("in_1") is ledger.invoices[ID]
    assert ledger.by_stripe_id("in_2") is None


@pytest.mark.parametrize(
    ("attempts", "in_force"),
    [
        ([("intent", 1), ("intent", 1)], [True, False]),
        ([("intent", 2)], [False]),
        ([("intent", 1), ("intent", 2)], [True, False]),  # the first may still have happened
        ([("intent", 1), ("unknown", 1), ("intent", 2)], [True, True, False]),
        ([("intent", 1), ("failed", 1), ("intent", 2)], [True, True, True]),
        ([("intent", 1), ("failed", 1), ("done", 1)], [True, True, False]),
        ([("intent", 1), ("unknown", 1), ("done", 1)], [True, True, True]),
        ([("intent", 1), ("done", 1), ("failed", 1), ("intent", 2)], [True, True, False, False]),
        ([("failed", 1), ("done", 1)], [False, False]),
    ],
)
def test_attempts_follow_one_another(attempts: list[tuple[Phase, int]], in_force: list[bool]) -> None:
    records = [step("finalize", phase, attempt=attempt, stripe=None) for phase, attempt in attempts]
    assert folded(*DRAFTED, *records)[1][len(DRAFTED) :] == in_force


def test_a_misused_key_stops_the_step() -> None:
    misuse = step("finalize", "failed", code="idempotency_error", reason="other parameters")
    ledger, won = folded(*DRAFTED, step("finalize", "intent"), misuse, step("finalize", "intent", attempt=2))
    assert won[-1] is False
    attempt = ledger.invoices[ID].attempt("finalize")
    assert attempt is not None
    assert not attempt.may_advance


def test_a_deleted_draft_is_made_under_new_keys() -> None:
    item = (step("item", "intent"), step("item", "done", object_id="ii_1"))
    gone = step("discard", "done", object_id="in_1")
    again = (step("draft", "intent", attempt=2), step("item", "intent", attempt=2))
    ledger, won = folded(*DRAFTED, *item, gone, step("draft", "intent", attempt=1), *again)
    assert won[-3:] == [False, True, True]
    assert ledger.invoices[ID].stripe_invoice_id is None
    assert ledger.by_stripe_id("in_1") is None


def test_an_order_is_recorded_once() -> None:
    ledger, won = folded(*PAID, order(amount_paid="9.00"))
    assert won[-1] is False
    assert [each.amount_paid for each in ledger.orders] == ["1.00"]
    assert ledger.invoices[ID].finished


@pytest.mark.parametrize(
    ("records", "in_force"),
    [
        ([("intent", 1, None), ("done", 1, "cus_1"), ("done", 1, "cus_2")], "cus_1"),
        ([("intent", 1, None), ("intent", 1, None), ("done", 1, "cus_1")], "cus_1"),
        ([("intent", 1, None), ("failed", 1, None), ("intent", 2, None), ("done", 2, "cus_2")], "cus_2"),
        ([("done", 1, "cus_given")], "cus_given"),
        ([("intent", 1, None)], None),
        ([("done", 1, None)], "absent"),
    ],
)
def test_the_first_stripe_customer_is_the_one(
    records: list[tuple[Phase, int, str | None]], in_force: str | None
) -> None:
    ledger, _ = folded(
        *(
            StripeCustomer("default", "c", phase, 1, attempt=attempt, stripe_customer_id=made)
            for phase, attempt, made in records
        )
    )
    state = ledger.customer("default", "c")
    assert (state.stripe_customer_id if state else "absent") == in_force
    assert ledger.customer("default", "c", "acct_1") is None


def test_every_interleaving_of_two_runs_comes_to_one_verdict() -> None:
    """Two runs write their own records, each in its order; whoever comes first, one draft and one order is in use."""

    def run(writer: str) -> list[LedgerRecord]:
        own = f"in_{writer}"
        return [
            fixed(writer=writer, fixed_at=ord(writer)),
            step("draft", "intent", writer=writer),
            step("draft", "done", object_id=own, stripe=seen("draft", id=own), writer=writer),
            order(writer=writer),
        ]

    count = len(run("a"))
    for places in itertools.combinations(range(2 * count), count):
        a, b = iter(run("a")), iter(run("b"))
        records = [next(a) if place in places else next(b) for place in range(2 * count)]
        ledger, won = folded(*records)
        again, won_again = folded(*records)
        assert (ledger.invoices, won) == (again.invoices, won_again)
        assert won.count(True) == count
        first = next(r.object_id for r in records if isinstance(r, InvoiceStep) and r.phase == "done")
        assert ledger.invoices[ID].stripe_invoice_id == first
        assert len(ledger.orders) == 1


@pytest.mark.parametrize(
    ("facts", "collection", "ends_at", "state"),
    [
        (None, "charge_automatically", None, "active"),
        (seen("open"), "charge_automatically", None, "active"),
        (FAILED, "charge_automatically", None, "active"),  # Stripe tries again
        (seen("open", attempted=True, attempt_count=4), "charge_automatically", None, "suspended"),
        (seen("uncollectible"), "charge_automatically", None, "suspended"),
        (seen("paid", attempted=True, attempt_count=4), "charge_automatically", None, "active"),
        (seen("open", due_date=50 * DAY_US), "send_invoice", None, "suspended"),
        (seen("open", due_date=51 * DAY_US), "send_invoice", None, "active"),
        (seen("uncollectible"), "charge_automatically", 50 * DAY_US, "ended"),
        (seen("open"), "charge_automatically", 51 * DAY_US, "active"),
    ],
)
def test_benefits_are_suspended_when_stripe_has_given_up(
    facts: StripeInvoice | None, collection: Any, ends_at: int | None, state: str
) -> None:
    invoice = folded(fixed(seller=Seller(collection)))[0].invoices[ID]
    assert benefits_state([replace(invoice, stripe=facts)], ends_at, 50 * DAY_US) == state


def test_the_document_has_the_shape_that_was_promised() -> None:
    document = folded(*PAID)[0].invoices[ID].document()
    promised = (
        "id organization_id customer_id subscription_id cycle currency lines total state reason stripe_invoice_id"
        " number hosted_invoice_url tax amount_due amount_paid watermark hash"
    )
    assert set(promised.split()) <= document.keys()
    assert document["cycle"] == {"start": "1970-01-01T00:00:00Z", "end": "1970-01-31T00:00:00Z"}
    assert document["watermark"] == {"epoch": 1, "offsets": {"0": 5, "1": 7}}
    assert (document["total"], document["amount_paid"]) == ("1.00", "1.00")
    assert document["lines"][0]["quantity"] == "10"


def test_records_of_a_customer_share_a_key() -> None:
    assert {record_key(record) for record in PAID} == {customer_key("default", "c").encode()}
