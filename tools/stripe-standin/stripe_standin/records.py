"""What the stand-in stores, one struct per kind of object; amounts are integers in minor units, times are seconds.

A record holds state only; how it looks in the API is its module's `render`. None means what null means at Stripe.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, ClassVar

import msgspec


class Record(msgspec.Struct, kw_only=True, tag=True, tag_field="kind"):
    """An object of an account. `parent` names the object that it is listed under, if any."""

    PREFIX: ClassVar[str]
    NOUN: ClassVar[str]
    """As error messages call it: No such NOUN."""

    id: str
    created: int

    @property
    def parent(self) -> str | None:
        return None


class Discount(msgspec.Struct):
    """A coupon as it was redeemed. percent_off: 50 for half."""

    id: str
    coupon: str
    percent_off: Decimal
    start: int


class Customer(Record, kw_only=True):
    PREFIX = "cus_"
    NOUN = "customer"

    email: str | None = None
    name: str | None = None
    phone: str | None = None
    description: str | None = None
    address: dict[str, Any] | None = None
    shipping: dict[str, Any] | None = None
    metadata: dict[str, str] = {}
    balance: int = 0
    """Negative: a credit that invoices use up. Positive: owed, added to the next invoice."""
    currency: str | None = None
    """That of the first invoice or item; the balance is in it."""
    other_balances: dict[str, int] = {}
    """Currency → balance, of any other currency: a credit in one pays no invoice in another."""
    default_payment_method: str | None = None
    invoice_footer: str | None = None
    invoice_custom_fields: list[dict[str, Any]] | None = None
    invoice_prefix: str
    next_invoice_sequence: int = 1
    preferred_locales: list[str] = []
    tax_exempt: str = "none"
    delinquent: bool = False
    deleted: bool = False
    payment_methods: list[str] = []
    """Attached, oldest first."""
    discount: Discount | None = None
    """Invoices inherit it, unless they are told not to."""

    def balance_in(self, currency: str) -> int:
        """Source: Stripe, "Multi-currency customers"."""
        return self.balance if self.currency in (None, currency) else self.other_balances.get(currency, 0)


class TaxId(Record, kw_only=True):
    PREFIX = "txi_"
    NOUN = "tax ID"

    customer: str
    type: str
    value: str

    @property
    def parent(self) -> str:
        return self.customer


class BalanceTransaction(Record, kw_only=True):
    """A change of a customer's balance."""

    PREFIX = "cbtxn_"
    NOUN = "customer balance transaction"

    customer: str
    amount: int
    currency: str
    ending_balance: int
    type: str
    invoice: str | None = None
    credit_note: str | None = None
    description: str | None = None
    metadata: dict[str, str] = {}

    @property
    def parent(self) -> str:
        return self.customer


class PaymentMethod(Record, kw_only=True):
    PREFIX = "pm_"
    NOUN = "PaymentMethod"

    card: str
    """Which of Stripe's test cards it is (cards.py)."""
    customer: str | None = None
    billing_details: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    allow_redisplay: str = "unspecified"


class TaxRate(Record, kw_only=True):
    PREFIX = "txr_"
    NOUN = "tax rate"

    display_name: str
    percentage: Decimal
    inclusive: bool
    active: bool = True
    country: str | None = None
    state: str | None = None
    jurisdiction: str | None = None
    description: str | None = None
    tax_type: str | None = None
    metadata: dict[str, str] = {}


class Tax(msgspec.Struct):
    """Tax of one rate on one amount."""

    amount: int
    taxable_amount: int
    inclusive: bool
    tax_rate: str
    reason: str


class InvoiceItem(Record, kw_only=True):
    """An item, and with `invoice` the line of that invoice."""

    PREFIX = "ii_"
    NOUN = "Invoice Item"

    customer: str
    invoice: str | None
    line_id: str
    currency: str
    amount: int
    quantity: Decimal
    unit_amount: Decimal
    product: str
    price: str
    description: str | None
    period_start: int
    period_end: int
    discountable: bool
    metadata: dict[str, str]
    tax_rates: list[str]
    tax_behavior: str = "unspecified"
    """Whether the amount includes automatic tax; unspecified: as the account says, which is exclusive here."""
    taxes: list[Tax] = []
    """Of the line, as last computed."""
    discount_amount: int = 0
    """By how much the invoice's discount lowers the line, as last computed."""

    @property
    def parent(self) -> str:
        return self.customer


class Invoice(Record, kw_only=True):
    PREFIX = "in_"
    NOUN = "invoice"

    customer: str
    currency: str
    status: str = "draft"
    collection_method: str = "charge_automatically"
    auto_advance: bool = False
    metadata: dict[str, str] = {}
    description: str | None = None
    footer: str | None = None
    statement_descriptor: str | None = None
    custom_fields: list[dict[str, Any]] | None = None
    default_payment_method: str | None = None
    default_tax_rates: list[str] = []
    automatic_tax: bool = False
    automatic_tax_status: str | None = None
    days_until_due: int | None = None
    due_date: int | None = None
    effective_at: int | None = None
    automatically_finalizes_at: int | None = None
    period_start: int
    period_end: int
    items: list[str] = []
    """Invoice items, in the order in which they were added."""
    number: str | None = None
    subtotal: int = 0
    total: int = 0
    total_excluding_tax: int = 0
    taxes: list[Tax] = []
    amount_due: int = 0
    amount_paid: int = 0
    starting_balance: int = 0
    ending_balance: int | None = None
    balance_applied: int = 0
    """By how much finalization raised the customer's balance: credit used up, or a small amount carried on."""
    pre_payment_credit: int = 0
    post_payment_credit: int = 0
    attempted: bool = False
    attempt_count: int = 0
    next_payment_attempt: int | None = None
    overdue_told: bool = False
    finalized_at: int | None = None
    paid_at: int | None = None
    voided_at: int | None = None
    marked_uncollectible_at: int | None = None
    paid_out_of_band: bool = False
    payment_intent: str | None = None
    debit_answered_at: int | None = None
    """When the bank says what became of the debit under way."""
    last_finalization_error: dict[str, Any] | None = None
    discount: Discount | None = None
    customer_snapshot: dict[str, Any] | None = None
    """The customer's name, address and the like as they were at finalization."""

    @property
    def parent(self) -> str:
        return self.customer

    @property
    def amount_remaining(self) -> int:
        if self.status == "paid":
            return 0
        return max(0, self.amount_due - self.amount_paid - self.pre_payment_credit)

    @property
    def next_step_at(self) -> int | None:
        """When Stripe does something with this invoice without a call: finalizes it, charges it, calls it overdue."""
        times: list[int | None] = []
        if self.status == "draft":
            times.append(self.automatically_finalizes_at)
        if self.status == "open":
            times += [self.next_payment_attempt, None if self.overdue_told else self.due_date]
        if self.status in ("open", "uncollectible"):
            times.append(self.debit_answered_at)
        return min((t for t in times if t is not None), default=None)


class PaymentIntent(Record, kw_only=True):
    PREFIX = "pi_"
    NOUN = "payment_intent"

    invoice: str
    customer: str
    amount: int
    currency: str
    status: str = "requires_payment_method"
    amount_received: int = 0
    payment_method: str | None = None
    last_payment_error: dict[str, Any] | None = None
    latest_charge: str | None = None
    cancellation_reason: str | None = None
    canceled_at: int | None = None
    invoice_payment: str
    description: str | None = None

    @property
    def parent(self) -> str:
        return self.invoice


class InvoicePayment(Record, kw_only=True):
    """The link between an invoice and a payment intent."""

    PREFIX = "inpay_"
    NOUN = "invoice payment"

    invoice: str
    payment_intent: str
    amount_requested: int
    currency: str
    status: str = "open"
    amount_paid: int | None = None
    paid_at: int | None = None
    canceled_at: int | None = None

    @property
    def parent(self) -> str:
        return self.invoice


class Charge(Record, kw_only=True):
    """One attempt to take money."""

    PREFIX = "ch_"
    NOUN = "charge"

    invoice: str
    payment_intent: str
    customer: str
    payment_method: str
    card: str
    amount: int
    currency: str
    succeeded: bool
    pending: bool = False
    failure_code: str | None = None
    decline_code: str | None = None
    failure_message: str | None = None
    amount_refunded: int = 0
    disputed: bool = False
    description: str | None = None

    @property
    def parent(self) -> str:
        return self.invoice


class Refund(Record, kw_only=True):
    PREFIX = "re_"
    NOUN = "refund"

    charge: str
    payment_intent: str
    amount: int
    currency: str
    reason: str | None = None
    metadata: dict[str, str] = {}

    @property
    def parent(self) -> str:
        return self.charge


class Dispute(Record, kw_only=True):
    PREFIX = "du_"
    NOUN = "dispute"

    charge: str
    payment_intent: str
    amount: int
    currency: str
    reason: str
    status: str = "needs_response"

    @property
    def parent(self) -> str:
        return self.charge


class CreditNoteLine(msgspec.Struct):
    id: str
    amount: int
    description: str | None
    invoice_line_item: str | None
    quantity: int | None = None


class CreditNote(Record, kw_only=True):
    PREFIX = "cn_"
    NOUN = "credit note"

    invoice: str
    customer: str
    currency: str
    number: str
    amount: int
    lines: list[CreditNoteLine]
    pre_payment_amount: int
    post_payment_amount: int
    credit_amount: int
    out_of_band_amount: int | None
    refund: str | None = None
    balance_transaction: str | None = None
    memo: str | None = None
    reason: str | None = None
    metadata: dict[str, str] = {}
    status: str = "issued"
    voided_at: int | None = None

    @property
    def parent(self) -> str:
        return self.invoice


class WebhookEndpoint(Record, kw_only=True):
    PREFIX = "we_"
    NOUN = "webhook endpoint"

    url: str
    enabled_events: list[str]
    secret: str
    connected: bool | None = False
    """Whose events it gets: the account's own (False), those of connected accounts (True), both (None)."""
    api_version: str | None = None
    description: str | None = None
    metadata: dict[str, str] = {}
    enabled: bool = True


KINDS: tuple[type[Record], ...] = (
    Customer,
    TaxId,
    BalanceTransaction,
    PaymentMethod,
    TaxRate,
    InvoiceItem,
    Invoice,
    PaymentIntent,
    InvoicePayment,
    Charge,
    Refund,
    Dispute,
    CreditNote,
    WebhookEndpoint,
)
