"""`close` on the real broker, engine and sink, and Stripe's stand-in: what is invoiced, charged and recorded."""

from __future__ import annotations

import time
from typing import Any

import pytest

from billing_job.close import UnknownOrganization
from billing_job.collect.poller import Poller
from billing_job.invoice.due import AsOfInFuture
from billing_job.invoice.usage_reader import NotCovered
from billing_job.service import UnknownInvoice
from ledger.snapshot import canonical_hash
from schemas.customer import Customer
from schemas.organization import DEFAULT_ORGANIZATION
from schemas.period import parse_rfc3339
from tests.flow.billing import APRIL, MARCH, MAY, TIERS, BillingWorld
from warehouse.client import connect

pytestmark = pytest.mark.timeout(300)


def test_150_000_units_cost_135_euros_at_stripe(world: BillingWorld) -> None:
    world.subscribe("tiers")
    world.use("tiers", "100000", "49999.5", "0.5")
    report = world.close()
    assert report.ok, report
    (invoice,) = world.invoices("tiers")
    assert invoice.fixed is not None
    assert (invoice.state, invoice.fixed.total) == ("paid", "135.00")
    (at_stripe,) = world.stripe_invoices("tiers")
    assert (at_stripe["subtotal"], at_stripe["currency"], at_stripe["status"]) == (13500, "eur", "paid")
    assert at_stripe["metadata"]["usage_hash"] == invoice.fixed.hash
    assert [(line["amount"], line["period"]) for line in at_stripe["lines"]["data"]] == [
        (13500, {"start": MARCH // 10**6, "end": APRIL // 10**6})
    ]
    charged = world.stripe.charges()[at_stripe["id"]]
    assert (charged["succeeded"], charged["amount"]) == (1, 13500)
    assert invoice.order is not None
    assert (invoice.order.amount_paid, invoice.document()["number"]) == ("135.00", at_stripe["number"])


def test_meters_count_sum_and_take_the_greatest_of_the_same_events(world: BillingWorld) -> None:
    world.subscribe(
        "meters",
        {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "0.10", "included_units": "1"},
        {"model": "per_unit", "meter_id": "mtr_count", "unit_amount": "1"},
        {"model": "per_unit", "meter_id": "mtr_peak", "unit_amount": "2"},
        {"model": "flat_fee", "amount": "49.00"},
    )
    world.use("meters", "0.1", "0.2", "2")
    world.use("meters", "7", "3", None, event_name="peak")
    world.use("meters", "100", at=MARCH - 1)  # before the cycle
    world.use("meters", "100", at=APRIL)  # after it: the end is exclusive
    report = world.close()
    assert report.ok, report
    (invoice,) = world.invoices("meters")
    assert invoice.fixed is not None
    assert [(line.quantity, line.amount) for line in invoice.fixed.lines] == [
        ("2.3", "0.13"),
        ("3", "3.00"),
        ("7", "14.00"),
        ("1", "49.00"),
    ]
    (at_stripe,) = world.stripe_invoices("meters")
    assert at_stripe["subtotal"] == 13 + 300 + 1400 + 4900


def test_an_event_counts_once_by_its_id_and_every_time_without_one(world: BillingWorld) -> None:
    world.subscribe("twice", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"})
    world.use("twice", "1", "2", identities=["c:a", "c:b"])
    world.use("twice", "1", "2", identities=["c:a", "c:b"], at=MARCH + 5_000_000)  # new timestamps, the same events
    world.use("twice", "10", "20")
    world.use("twice", "10", "20")
    assert world.close().ok
    (invoice,) = world.invoices("twice")
    assert invoice.fixed is not None
    assert invoice.fixed.total == "63.00"


def test_closing_again_changes_nothing(world: BillingWorld) -> None:
    world.subscribe("again")
    world.use("again", "20000")
    assert world.close(settings={}).ok
    before = (world.changes(), len(world.stripe.requests()), world.ledger_size())
    documents = [invoice.document() for invoice in world.invoices("again")]
    world.use("again", "5")  # late: what is invoiced stays as it is
    report = world.close(settings={})
    assert report.ok
    assert report.fixed == 0
    assert (world.changes(), len(world.stripe.requests()), world.ledger_size()) == before
    assert [invoice.document() for invoice in world.invoices("again")] == documents


def test_a_dry_run_writes_nothing(world: BillingWorld) -> None:
    world.subscribe("dry")
    world.use("dry", "150000")
    before = (len(world.stripe.requests()), world.ledger_size())
    report = world.close(dry_run=True)
    assert report.ok
    (shown,) = [invoice for invoice in report.invoices if invoice.customer_id == "dry"]
    assert (shown.state, shown.document()["total"]) == ("computed", "135.00")
    assert (len(world.stripe.requests()), world.ledger_size()) == before
    assert world.close().ok
    (invoice,) = world.invoices("dry")
    assert invoice.fixed is not None
    assert shown.fixed is not None
    assert invoice.fixed.lines == shown.fixed.lines


def test_a_cycle_without_usage_is_closed_at_zero(world: BillingWorld) -> None:
    world.subscribe("idle")
    assert world.close().ok
    (invoice,) = world.invoices("idle")
    assert (invoice.state, invoice.stripe_invoice_id) == ("paid", None)
    assert invoice.order is not None
    assert (invoice.order.amount_paid, invoice.document()["amount_paid"]) == ("0.00", "0.00")
    assert world.stripe_invoices("idle") == []


def test_every_cycle_is_closed_once(world: BillingWorld) -> None:
    world.subscribe("months", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1"})
    world.use("months", "1")
    world.use("months", "2", at=APRIL)
    assert world.close(APRIL).ok
    assert world.close(MAY).ok
    assert [(i.state, i.document()["total"]) for i in world.invoices("months")] == [("paid", "1.00"), ("paid", "2.00")]
    assert len(world.stripe_invoices("months")) == 2


def test_an_ended_subscription_is_billed_for_what_was_used(world: BillingWorld) -> None:
    half = (MARCH + APRIL) // 2
    world.subscribe("ended", TIERS, {"model": "flat_fee", "amount": "10"}, ends_at=half)
    world.use("ended", "150000")
    world.use("ended", "77", at=half)
    assert world.close(half).ok
    (invoice,) = world.invoices("ended")
    assert invoice.fixed is not None
    assert [line.amount for line in invoice.fixed.lines] == ["135.00", "5.00"]
    assert world.close(APRIL).ok
    assert len(world.invoices("ended")) == 1


def test_what_is_within_its_grace_is_told_and_not_closed(world: BillingWorld) -> None:
    world.subscribe("grace", started_at=parse_rfc3339("2026-06-01T00:00:00Z"))
    end = parse_rfc3339("2026-07-01T00:00:00Z")
    organization = world.catalog.view.organization(DEFAULT_ORGANIZATION)
    assert organization is not None
    version = world.catalog.view.version(type(organization), organization.id, organization.id)
    world.catalog.write(organization.model_copy(update={"grace_seconds": 3600}), version)
    try:
        report = world.close(end, now_us=end + 3_599_999_999)
        assert [due.customer_id for due in report.in_grace].count("grace") == 1
        assert world.invoices("grace") == []
    finally:
        world.catalog.write(organization, version + 1)


def test_wrong_use_is_refused(world: BillingWorld) -> None:
    with pytest.raises(AsOfInFuture):
        world.close(time.time_ns() // 1000 + 60_000_000)
    with pytest.raises(UnknownOrganization):
        world.close(organization_id="org_of_nobody")


# --- Payment ----------------------------------------------------------------------------------------------------------


def test_a_payment_that_fails_is_stripes_to_retry(world: BillingWorld) -> None:
    world.subscribe("declined", payment_method="pm_card_chargeCustomerFail")
    world.use("declined", "150000")
    report = world.close()
    assert report.ok, report.problems
    (invoice,) = world.invoices("declined")
    assert (invoice.state, invoice.order) == ("payment_failed", None)
    assert invoice.reason is not None
    assert "declined" in invoice.reason
    assert invoice.document()["next_payment_attempt"] is not None
    before = world.changes()
    assert world.close().ok
    assert world.changes() == before

    # The customer brings another card, Stripe tries again by its schedule, and the sweep hears of it.
    (at_stripe,) = world.stripe_invoices("declined")
    method = world.at_stripe("POST", "/v1/payment_methods/pm_card_visa/attach", customer=at_stripe["customer"])["id"]
    default = {"invoice_settings[default_payment_method]": method}
    world.at_stripe("POST", f"/v1/customers/{at_stripe['customer']}", **default)
    world.stripe.advance(4 * 86_400)
    assert Poller(world.context.billing(), 1.0).run() == 1
    assert Poller(world.context.billing(), 1.0).run() == 0
    (invoice,) = world.invoices("declined")
    assert (invoice.state, invoice.reason) == ("paid", None)
    assert invoice.order is not None
    assert invoice.order.amount_paid == "135.00"


def test_a_card_that_can_not_be_attached_leaves_the_invoice_open(world: BillingWorld) -> None:
    world.subscribe("no_card", payment_method="pm_card_chargeDeclined")
    world.use("no_card", "150000")
    report = world.close()
    assert report.ok, report.problems
    (invoice,) = world.invoices("no_card")
    assert (invoice.state, invoice.order) == ("open", None)
    assert invoice.reason is not None
    assert "default_payment_method" in invoice.reason
    customer = world.context.log.state.customer(DEFAULT_ORGANIZATION, "no_card")
    assert customer is not None
    assert customer.default_payment_method is None
    assert customer.reason is not None
    before = world.changes()
    assert world.close().ok
    assert world.changes() == before


def test_a_token_becomes_the_default_payment_method(world: BillingWorld) -> None:
    world.subscribe("token", payment_method="tok_visa", email="t@example.com", address={"country": "DE"})
    world.use("token", "150000")
    assert world.close().ok
    (invoice,) = world.invoices("token")
    assert invoice.state == "paid"
    (at_stripe,) = world.stripe_invoices("token")
    assert (at_stripe["customer_email"], at_stripe["customer_address"]["country"]) == ("t@example.com", "DE")


def test_a_given_stripe_customer_is_used_and_none_is_made(world: BillingWorld) -> None:
    given = world.at_stripe("POST", "/v1/customers", name="known before")["id"]
    world.subscribe("given", stripe_customer_id=given)
    world.use("given", "150000")
    made = len(world.stripe.requests("POST", "/v1/customers"))
    assert world.close().ok
    assert world.stripe_invoices("given")[0]["customer"] == given
    assert len(world.stripe.requests("POST", "/v1/customers")) == made


def test_another_payment_method_in_the_catalog_is_attached_for_the_next_invoice(world: BillingWorld) -> None:
    world.subscribe("changed", payment_method="pm_card_chargeCustomerFail")
    world.use("changed", "150000")
    world.use("changed", "150000", at=APRIL)
    assert world.close(APRIL).ok
    customer = world.catalog.view.get(Customer, DEFAULT_ORGANIZATION, "changed")
    assert customer is not None
    world.catalog.write(customer.model_copy(update={"payment_method": "pm_card_mastercard"}), 1)
    assert world.close(MAY).ok
    assert [invoice.state for invoice in world.invoices("changed")] == ["payment_failed", "paid"]


def test_a_sent_invoice_is_open_until_it_is_paid(world: BillingWorld) -> None:
    world.subscribe("sent", collection_method="send_invoice")
    world.use("sent", "150000")
    assert world.close().ok
    (invoice,) = world.invoices("sent")
    assert invoice.state == "open"
    (at_stripe,) = world.stripe_invoices("sent")
    assert at_stripe["due_date"] is not None
    assert not world.stripe.requests("POST", f"/v1/invoices/{at_stripe['id']}/pay")
    world.at_stripe("POST", f"/v1/invoices/{at_stripe['id']}/pay", paid_out_of_band="true")
    Poller(world.context.billing(), 1.0).run()
    (invoice,) = world.invoices("sent")
    assert invoice.state == "paid"
    assert invoice.order is not None


def test_what_is_below_the_least_charge_is_carried_by_stripe(world: BillingWorld) -> None:
    world.subscribe("small", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "0.30"})
    world.use("small", "1")
    assert world.close().ok
    (invoice,) = world.invoices("small")
    assert invoice.order is not None
    assert (invoice.state, invoice.order.amount_paid) == ("paid", "0.00")
    assert invoice.stripe is not None
    assert (invoice.stripe.subtotal_minor, invoice.stripe.applied_balance_minor) == (30, 30)


def test_amounts_of_a_currency_without_decimals(world: BillingWorld) -> None:
    world.subscribe("yen", {"model": "per_unit", "meter_id": "mtr_calls", "unit_amount": "1.5"}, currency="jpy")
    world.use("yen", "101")
    assert world.close().ok
    (at_stripe,) = world.stripe_invoices("yen")
    assert (at_stripe["subtotal"], at_stripe["currency"], at_stripe["status"]) == (152, "jpy", "paid")


# --- Gate, coverage, verification -------------------------------------------------------------------------------------


def test_nothing_is_finalized_while_stripes_subtotal_differs(world: BillingWorld) -> None:
    world.subscribe("tampered")
    world.use("tampered", "150000")
    world.stripe.fault("error", "POST", "/v1/invoices/*/finalize", message="not now", status=400)
    report = world.close()
    assert not report.ok
    (draft,) = world.stripe_invoices("tampered")
    assert draft["status"] == "draft"
    extra = world.at_stripe(
        "POST", "/v1/invoiceitems", customer=draft["customer"], invoice=draft["id"], amount="1", currency="eur"
    )
    report = world.close()
    assert not report.ok
    (invoice,) = world.invoices("tampered")
    assert invoice.state == "mismatch"
    assert invoice.reason == "Stripe's subtotal in minor units: 13500 invoiced, 13501 found (+1)"
    size = world.ledger_size()
    assert not world.close().ok
    assert world.ledger_size() == size, "the same news was written again"
    assert world.stripe_invoices("tampered")[0]["status"] == "draft"

    world.at_stripe("DELETE", f"/v1/invoiceitems/{extra['id']}")
    assert world.close().ok
    (invoice,) = world.invoices("tampered")
    assert invoice.state == "paid"
    assert world.stripe.charges()[draft["id"]]["succeeded"] == 1


def test_nothing_is_finalized_while_the_counts_differ(world: BillingWorld) -> None:
    world.subscribe("counted")
    world.use("counted", "150000", identities=["c:one"])
    world.stripe.fault("error", "POST", "/v1/invoices", message="not now", status=400)
    assert not world.close().ok
    (invoice,) = world.invoices("counted")
    assert invoice.fixed is not None
    # A row that was not there when the invoice was fixed, below its watermark.
    client = connect(world.settings)
    client.command(
        "INSERT INTO usage_events SELECT * REPLACE ('c:smuggled' AS identity, 7 AS value) FROM usage_events"
        " WHERE customer_id = 'counted'"
    )
    report = world.close()
    assert not report.ok
    (invoice,) = world.invoices("counted")
    assert invoice.state == "mismatch"
    assert invoice.reason == "mtr_calls: 150000 invoiced, 150007 found (+7)"
    assert world.stripe_invoices("counted") == []
    found = world.service.verify(invoice.id)
    assert not found.ok
    assert found.recorded != found.recomputed
    assert found.differences[0] == "mtr_calls: 150000 invoiced, 150007 found (+7)"
    assert "no event c:smuggled was accepted there" in found.differences[1]

    client.command("ALTER TABLE usage_events DELETE WHERE identity = 'c:smuggled' SETTINGS mutations_sync = 1")
    client.close()
    assert world.close().ok
    (invoice,) = world.invoices("counted")
    assert invoice.state == "paid"
    assert world.service.verify(invoice.id).ok


def test_a_voided_event_is_on_no_invoice_that_is_fixed_after_it(world: BillingWorld) -> None:
    world.subscribe("voided", TIERS, started_at=MARCH)
    world.use("voided", "100", "20", "3", identities=["c:a", "c:b", "c:c"])
    world.void("voided", "b")
    assert world.close().ok
    (invoice,) = world.invoices("voided")
    assert invoice.fixed is not None
    assert [line.quantity for line in invoice.fixed.lines] == ["103"]
    # A tombstone above its watermark: what it says stays, and is recomputed to the same.
    world.void("voided", "c")
    world.use("voided", "5", at=APRIL)
    assert world.close(MAY).ok
    assert world.service.verify(invoice.id).ok
    (stored,) = world.query("SELECT count(), sum(value) FROM usage WHERE customer_id = 'voided'")
    assert stored == (2, 105)


def test_an_invoice_waits_until_clickhouse_has_what_it_counts(world: BillingWorld) -> None:
    world.subscribe("waits")
    world.sink.stop()
    try:
        world.use("waits", "150000")
        report = world.close(settings={"coverage_timeout_seconds": 0.5})
        assert not report.ok
        assert report.waiting == "ClickHouse does not have all events of the watermark yet"
        assert [due.customer_id for due in report.waiting_for].count("waits") == 1
        assert report.by_state["waiting"] >= 1
        (invoice,) = world.invoices("waits")
        assert (invoice.state, invoice.reason, invoice.fixed) == ("waiting", report.waiting, None)
        assert world.stripe_invoices("waits") == []
    finally:
        world.sink.start()
    assert world.close().ok
    (invoice,) = world.invoices("waits")
    assert (invoice.state, invoice.document()["total"]) == ("paid", "135.00")


def replace_store_at(world: BillingWorld, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When billing comes to that step, an empty copy takes the place of the store; once."""
    usage, asked = world.context.usage, getattr(world.context.usage, step)

    def replaced(*given: Any) -> Any:
        monkeypatch.setattr(usage, step, asked)
        world.sink.stop()
        with connect(world.settings) as client:
            for table in ("usage_events", "usage_accepted", "ingest_batches", "store_marks", "coverage_checkpoints"):
                client.command(f"TRUNCATE TABLE {table}")
        return asked(*given)

    monkeypatch.setattr(usage, step, replaced)


def test_an_older_copy_of_clickhouse_while_it_counts_makes_no_invoice(
    world: BillingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.subscribe("restored")
    world.use("restored", "150000")
    replace_store_at(world, "totals", monkeypatch)
    try:
        report = world.close()
        assert report.waiting == "ClickHouse was replaced by an older copy of itself meanwhile"
        (invoice,) = world.invoices("restored")
        assert (invoice.state, invoice.fixed) == ("waiting", None)
        # Nor later: what it saw of the other store counts for nothing.
        with pytest.raises(NotCovered):
            world.context.usage.require_covered([world.context.usage.watermark()])
    finally:
        world.sink.start()
    assert world.close().ok
    (invoice,) = world.invoices("restored")
    assert (invoice.state, invoice.document()["total"]) == ("paid", "135.00")


@pytest.mark.parametrize("step", ["require_covered", "independent_totals"])
def test_an_older_copy_of_clickhouse_holds_no_invoice_as_a_mismatch(
    world: BillingWorld, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = f"restored_{step}"
    world.subscribe(customer)
    world.use(customer, "150000")
    replace_store_at(world, step, monkeypatch)
    try:
        report = world.close()
        (invoice,) = world.invoices(customer)
        assert invoice.fixed is not None
        assert "ClickHouse" in report.problems[invoice.id]
        assert invoice.state == "computed"
        assert world.stripe_invoices(customer) == []
    finally:
        world.sink.start()
    world.until(lambda: world.close().ok)
    (invoice,) = world.invoices(customer)
    assert (invoice.state, invoice.document()["total"]) == ("paid", "135.00")


def test_a_count_whose_windows_went_to_another_node_is_no_invoice_of_zero(
    world: BillingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paid as 0: what is missing where the question is answered is not 0."""
    world.subscribe("node")
    world.use("node", "150000")

    client = world.context.usage._shards.first  # pyright: ignore[reportPrivateUsage]
    insert = client.insert

    def elsewhere(table: str, *given: Any, **more: Any) -> None:
        """A node that answers nothing acknowledges the windows."""
        if table != "totals_requests":
            insert(table, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr("warehouse.totals._GIVEN_MAX", 0)
        patched.setattr(client, "insert", elsewhere)
        report = world.close()
    assert report.waiting == "ClickHouse did not answer for all that was to be counted"
    (invoice,) = world.invoices("node")
    assert (invoice.state, invoice.code, world.stripe_invoices("node")) == ("waiting", "incomplete_count", [])
    assert world.close().ok
    (invoice,) = world.invoices("node")
    assert (invoice.state, invoice.document()["total"]) == ("paid", "135.00")


def test_show_explain_verify_and_preview(world: BillingWorld) -> None:
    this_month = parse_rfc3339("2026-11-01T00:00:00Z")
    now = parse_rfc3339("2026-11-10T00:00:00Z")
    world.subscribe("shown", {**TIERS, "included_units": "1000"}, started_at=this_month)
    world.use("shown", "12000", at=this_month)
    previews: list[dict[str, Any]] = []

    def covered() -> bool:
        previews[:] = world.preview("shown", now)
        return previews[0]["total"] == "21.00"

    world.until(covered)
    assert previews[0]["lines"][0]["included"] == "1000"
    assert world.invoices("shown") == []
    assert world.preview("nobody", now) == []

    world.subscribe("shown_march", {**TIERS, "included_units": "1000"})
    world.use("shown_march", "12000")
    assert world.close().ok
    (invoice,) = world.invoices("shown_march")
    document = world.service.invoice(invoice.id).document()
    assert (document["total"], document["state"]) == ("21.00", "paid")
    told = "\n".join(world.service.explain(invoice.id))
    assert "12000 - 1000 included = 11000 priced" in told
    assert "above 0 to 10000: 10000 x 0.002 = 20" in told
    assert world.service.verify(invoice.id).ok
    assert invoice.fixed is not None
    assert canonical_hash(invoice.fixed) == document["hash"]
    with pytest.raises(UnknownInvoice):
        world.service.invoice("inv_of_nobody").document()
