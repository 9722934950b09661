"""Records of the ledger: their JSON, and the fold that every reader agrees on."""

import itertools
from typing import Any

import msgspec
import pytest

from ledger.records import (
    IDEMPOTENCY_ERROR,
    InvoiceAdjusted,
    InvoiceStep,
    LedgerRecord,
    OrderRecorded,
    Phase,
    StepName,
    StripeCustomer,
    StripeInvoice,
    UnreadableLedgerRecord,
    decode,
    encode,
    record_key,
)
from ledger.snapshot import (
    InvoiceFixed,
    Line,
    Seller,
    canonical_hash,
    invoice_id,
    order_id,
    with_hash,
)
from ledger.view import InvoiceLedger
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
        step("credit", "intent", index=1, amount_minor=50, target="refund", memo="too much"),
        InvoiceAdjusted(ID, "default", "c", "refund", "re_1", 50, "eur", "succeeded", 1, 2),
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


VOIDED = (step("void", "intent", memo="asked to"), step("void", "done"))


@pytest.mark.parametrize("before", [(fixed(),), DRAFTED, (fixed(), step("gate", "failed", reason="5 and 6"))])
def test_nothing_begins_once_an_invoice_is_being_voided(before: tuple[LedgerRecord, ...]) -> None:
    ledger, won = folded(*before, VOIDED[0], step("finalize", "intent"), VOIDED[1], step("pay", "intent"))
    assert won[len(before) :] == [True, False, True, False]
    assert (ledger.invoices[ID].state, ledger.invoices[ID].reason) == ("void", "asked to")


def test_a_draft_that_is_recorded_late_leaves_a_void_invoice_void() -> None:
    ledger, _ = folded(fixed(), step("draft", "intent"), *VOIDED, DRAFTED[-1])
    invoice = ledger.invoices[ID]
    assert (invoice.state, invoice.stripe_invoice_id) == ("void", "in_1")
    assert ledger.apply(step("discard", "done", object_id="in_1"))
    assert ledger.invoices[ID].state == "void"


def test_a_void_that_failed_lets_others_go_on() -> None:
    _, won = folded(*DRAFTED, VOIDED[0], step("void", "failed", reason="paid"), step("finalize", "intent"))
    assert won[-1] is True


def test_a_cycle_is_billed_by_the_revision_after_those_reissued() -> None:
    ledger, won = folded(*DRAFTED, step("reissue", "done"), *VOIDED, step("reissue", "done"), step("reissue", "done"))
    assert won[len(DRAFTED) :] == [False, True, True, True, False]
    second = invoice_id("default", "sub_1", 0, 2)
    assert ledger.in_force("default", "sub_1", 0) == (second, 2)
    assert ledger.in_force("default", "sub_2", 0) == (invoice_id("default", "sub_2", 0), 1)
    ledger.apply(fixed(invoice_id=second, revision=2))
    assert ledger.in_force("default", "sub_1", 0) == (second, 2)
    assert ledger.invoices[second].document()["revision"] == 2


def test_what_is_credited_is_said_with_the_first_attempt() -> None:
    first = step("credit", "intent", index=1, amount_minor=50, target="refund", memo="too much")
    failed = step("credit", "failed", index=1, code="500", reason="no")
    ledger, won = folded(*PAID, first, failed, step("credit", "intent", index=1, attempt=2))
    assert won[-1] is True
    attempt = ledger.invoices[ID].attempt("credit", 1)
    assert attempt is not None
    assert (attempt.number, attempt.phase, attempt.reason) == (2, "intent", None)
    assert (attempt.amount_minor, attempt.target, attempt.memo) == (50, "refund", "too much")


def adjusted(status: str, seen_at: int, **changes: Any) -> InvoiceAdjusted:
    values: dict[str, Any] = {
        "invoice_id": ID,
        "organization_id": "default",
        "customer_id": "c",
        "adjustment": "refund",
        "object_id": "re_1",
        "amount_minor": 50,
        "currency": "eur",
        "status": status,
        "created_at": 1,
        "seen_at": seen_at,
    }
    return InvoiceAdjusted(**{**values, **changes})


def test_of_an_adjustment_what_was_read_last_is_in_force() -> None:
    records = [
        adjusted("pending", 2),
        adjusted("succeeded", 5),
        adjusted("pending", 4),  # read before, written after
        adjusted("succeeded", 6),  # no news
        adjusted("failed", 7),  # a refund that succeeded can fail
        adjusted("won", 3, adjustment="dispute", object_id="du_1", currency="usd"),
    ]
    ledger, won = folded(*PAID, *records)
    assert won[len(PAID) :] == [True, True, False, False, True, True]
    invoice = ledger.invoices[ID]
    assert [(each.object_id, each.status) for each in invoice.adjustments.values()] == [
        ("re_1", "failed"),
        ("du_1", "won"),
    ]
    assert [each["amount"] for each in invoice.document()["adjustments"]] == ["0.50", "0.50"]
    assert invoice.state == "paid"
    assert folded(adjusted("pending", 2))[1] == [False]


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


# --- Held, approved, retried ------------------------------------------------------------------------------------------


def test_what_holds_an_invoice_is_named() -> None:
    waiting = step("wait", "failed", code="not_stored", reason="r", subscription_id="sub_1", cycle_start=0, cycle_end=1)
    ledger, _ = folded(waiting)
    assert (ledger.invoices[ID].held_by, ledger.invoices[ID].document()["reason_code"]) == ("not_stored", "not_stored")
    ledger, _ = folded(waiting, fixed())
    assert ledger.invoices[ID].held_by is None
    ledger, _ = folded(fixed(), step("gate", "failed", code="quantity", reason="differs"))
    assert (ledger.invoices[ID].state, ledger.invoices[ID].held_by) == ("mismatch", "quantity")
    assert ledger.apply(step("gate", "done"))
    assert (ledger.invoices[ID].state, ledger.invoices[ID].held_by) == ("computed", None)


def test_an_approval_counts_once_and_has_the_counts_compared_again() -> None:
    ledger, verdicts = folded(step("approve", "done"), fixed(), step("gate", "done"), step("approve", "done"))
    assert verdicts == [False, True, True, True]
    assert (ledger.invoices[ID].approved, ledger.invoices[ID].gate) == (True, None)
    assert not ledger.apply(step("approve", "done"))


def test_a_retry_lets_what_failed_for_good_begin_once_more() -> None:
    stopped = (*DRAFTED, step("finalize", "intent"), step("finalize", "failed", code=IDEMPOTENCY_ERROR, reason="r"))
    ledger, _ = folded(*stopped)
    assert not ledger.apply(step("finalize", "intent", attempt=2))
    assert ledger.apply(step("retry", "done", at=7))
    assert ledger.invoices[ID].retry_asked_at == 7
    assert ledger.apply(step("finalize", "intent", attempt=2))
    assert not ledger.apply(step("draft", "intent", attempt=2)), "what was made is not made again"


# --- Paid twice -------------------------------------------------------------------------------------------------------

PAID_TWICE: tuple[LedgerRecord, ...] = (
    fixed(),
    step("draft", "intent"),
    step("draft", "done", object_id="in_1"),
    step("observe", "done", stripe=seen("paid")),
    order(),
    step("gate", "failed", code="charged_twice", reason="Stripe invoice in_2 was paid", object_id="in_2"),
)


@pytest.mark.parametrize(
    "later",
    [
        step("gate", "done"),
        step("approve", "done"),
        step("retry", "done"),
        step("observe", "done", stripe=seen("paid", credited_minor=5, seen_at=9)),
        step("settle", "done", object_id="in_3", memo="another"),
    ],
)
def test_paid_twice_is_not_forgotten_by_itself(later: LedgerRecord) -> None:
    """A close with manual approval, or any news of Stripe, made it paid with nothing refunded."""
    ledger, _ = folded(*PAID_TWICE, later)
    invoice = ledger.invoices[ID]
    assert (invoice.state, invoice.held_by, invoice.paid_twice) == ("mismatch", "charged_twice", ("in_2",))
    assert invoice.reason == "Stripe invoice in_2 was paid for the same cycle: refund it"


def test_paid_twice_is_settled_by_a_record_and_not_found_again() -> None:
    found_again = PAID_TWICE[-1]
    ledger, won = folded(
        *PAID_TWICE, step("settle", "done", object_id="in_2", memo="refunded", by="key_1"), found_again
    )
    invoice = ledger.invoices[ID]
    assert won[-2:] == [True, False]
    assert (invoice.state, invoice.held_by, invoice.reason) == ("paid", None, "refunded")
    assert invoice.finished


def test_a_hold_from_before_its_stripe_invoice_was_in_the_record_names_it() -> None:
    old = step(
        "gate", "failed", code="charged_twice", reason="Stripe invoice in_2 was paid for the same cycle: refund it"
    )
    ledger, _ = folded(*PAID_TWICE[:-1], old)
    assert ledger.invoices[ID].paid_twice == ("in_2",)
    assert ledger.by_second_payment("in_2") is ledger.invoices[ID]
