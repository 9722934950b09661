"""An example of everything that the API takes and answers, for the OpenAPI document. Pure data; a test validates it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MADE = {"created_at": "2026-03-01T09:30:00Z", "archived": False, "version": 1}
_METER_ID = "mtr_5f0c9b1e2d3a4b5c6d7e8f90"
_PRODUCT_ID = "prod_1a2b3c4d5e6f7a8b9c0d1e2f"
_SUBSCRIPTION_ID = "sub_9f8e7d6c5b4a39281706f5e4"
_RULE_ID = "rule_0a1b2c3d4e5f60718293a4b5"
_ENDPOINT_ID = "whe_7c6b5a4938271605f4e3d2c1"
_ALERT_ID = "alrt_3b1f0c9d8e7a6b5c4d3e2f1a0b9c8d7e"
_MARCH = {"start": "2026-03-01T00:00:00Z", "end": "2026-04-01T00:00:00Z"}
_SECRET = "ubk_Zk9…"
_NOON = "2026-03-30T12:00:00Z"

_METER = {"name": "API requests", "event_name": "api_request", "unit": "requests", "aggregation": "count"}
_PRICES = [
    {
        "model": "graduated",
        "meter_id": _METER_ID,
        "included_units": "1000",
        "tiers": [{"up_to": "10000", "unit_amount": "0.002"}, {"up_to": None, "unit_amount": "0.001"}],
    },
    {"model": "flat_fee", "amount": "49.00"},
    {"model": "minimum", "amount": "100.00"},
]
_PRODUCT = {"name": "Standard", "currency": "eur", "prices": _PRICES, "benefits": ["priority-support"]}
_CUSTOMER = {
    "id": "cus_1",
    "name": "Acme GmbH",
    "email": "billing@acme.example",
    "address": {"line1": "Ring 1", "city": "Wien", "postal_code": "1010", "country": "AT"},
    "tax_ids": [{"type": "eu_vat", "value": "ATU12345678"}],
    "stripe_customer_id": None,
    "payment_method": "pm_card_visa",
}
_SUBSCRIPTION = {
    "customer_id": "cus_1",
    "product_id": _PRODUCT_ID,
    "started_at": "2026-03-01T00:00:00Z",
    "billed_from": None,
    "billing_interval": "month",
    "collection_method": "charge_automatically",
}
_RULE = {
    "meter_id": _METER_ID,
    "customer_id": None,
    "kind": "included_percent",
    "threshold": "80",
    "alert_existing": False,
    "past_cycles": False,
}
_ENDPOINT = {"url": "https://example.com/hooks", "description": "on-call"}
_ORGANIZATION = {
    "name": "Acme",
    "time_zone": "Europe/Vienna",
    "late_policy": "next_invoice",
    "grace_seconds": 3600,
    "invoice_approval": "automatic",
    "tax_mode": "none",
    "tax_rates": [],
    "stripe_account_id": None,
}
_KEY = {"name": "production gateway", "scopes": ["ingest"]}
_ALERT = {
    "id": _ALERT_ID,
    "rule_id": _RULE_ID,
    "customer_id": "cus_1",
    "meter_id": _METER_ID,
    "kind": "included_percent",
    "threshold": "80",
    "quantity": "80.1",
    "cycle_start": _MARCH["start"],
    "cycle_end": _MARCH["end"],
    "fired_at": "2026-03-20T14:05:11.25Z",
    "currency": None,
    "not_sent": None,
}
_LINE = {
    "meter_id": _METER_ID,
    "price_index": 0,
    "model": "graduated",
    "description": "API requests: 12,000 requests, 1,000 included",
    "quantity": "12000",
    "included": "1000",
    "priced_quantity": "11000",
    "amount": "21.00",
    "amount_minor": 2100,
    "tiers": [
        {"up_to": "10000", "quantity": "10000", "unit_amount": "0.002", "amount": "20"},
        {"up_to": None, "quantity": "1000", "unit_amount": "0.001", "amount": "1"},
    ],
}
_INVOICE = {
    "id": "inv_4f3e2d1c0b9a88776655443322110099",
    "organization_id": "default",
    "customer_id": "cus_1",
    "subscription_id": _SUBSCRIPTION_ID,
    "cycle": _MARCH,
    "currency": "eur",
    "lines": [_LINE],
    "total": "21.00",
    "state": "paid",
    "reason": None,
    "stripe_invoice_id": "in_1Qabc",
    "number": "A1B2-0001",
    "hosted_invoice_url": "https://invoice.stripe.com/i/acct_1/test",
    "tax": "0.00",
    "amount_due": "21.00",
    "amount_paid": "21.00",
    "watermark": {"epoch": 1, "offsets": {"0": 1871}},
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}
_CREDIT_NOTE = {
    "type": "credit_note",
    "id": "cn_1Qabc",
    "amount": "5.00",
    "currency": "eur",
    "status": "issued",
    "reason": None,
    "number": "A1B2-0001-CN-01",
    "created_at": "2026-04-03T10:00:00Z",
    "for": "goodwill",
}
_DELIVERY = {
    "id": "dlv_1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f",
    "endpoint_id": _ENDPOINT_ID,
    "alert_id": _ALERT_ID,
    "customer_id": "cus_1",
    "state": "pending",
    "created_at": "2026-03-20T14:05:11.4Z",
    "next_attempt_at": "2026-03-20T14:05:17Z",
    "attempts_made": 1,
    "attempts": [{"at": "2026-03-20T14:05:11.5Z", "status": 503, "error": "answered 503", "milliseconds": 84}],
    "payload": '{"type": "alert.fired", …}',
}
_EVENT = {
    "customer_id": "cus_1",
    "event_name": "api_request",
    "event_id": "5f0c9b1e",
    "timestamp": "2026-03-30T12:00:00Z",
    "value": "1",
    "properties": {"region": "eu"},
    "received_at": "2026-03-30T12:00:00.412Z",
    "epoch": 1,
    "partition": 3,
    "offset": 1871,
    "index": 0,
}
_LIVE_ROW = {
    "customer_id": "cus_1",
    "meter_id": _METER_ID,
    "from": _MARCH["start"],
    "to": _MARCH["end"],
    "quantity": "12000",
    "updated_at": "2026-03-30T12:00:00.6Z",
}
_USAGE_ROW = {name: value for name, value in _LIVE_ROW.items() if name != "updated_at"} | {"group": None}
_ORDER = {
    "id": "ord_4f3e2d1c0b9a88776655443322110099",
    "invoice_id": _INVOICE["id"],
    "customer_id": "cus_1",
    "subscription_id": _SUBSCRIPTION_ID,
    "currency": "eur",
    "amount_paid": "21.00",
    "paid_at": "2026-04-01T01:00:12Z",
}

_SHOWN: dict[str, dict[str, Any]] = {
    "MeterOut": {**_METER, **_MADE, "id": _METER_ID},
    "ProductOut": {**_PRODUCT, **_MADE, "id": _PRODUCT_ID},
    "CustomerOut": {**_CUSTOMER, **_MADE},
    "SubscriptionOut": {
        **_SUBSCRIPTION, **_MADE, "id": _SUBSCRIPTION_ID, "ends_at": None, "time_zone": "Europe/Vienna", "changes": [],
        "status": "active", "current_cycle": _MARCH,
    },
    "AlertRuleOut": {**_RULE, **_MADE, "id": _RULE_ID},
    "AlertOut": _ALERT,
    "WebhookEndpointOut": {**_ENDPOINT, **_MADE, "id": _ENDPOINT_ID},
    "WebhookDeliveryOut": _DELIVERY,
    "ApiKeyOut": {**_KEY, **_MADE, "id": "key_2b3c4d5e6f708192a3b4c5d6", "hint": "x9Qk"},
    "InvoiceOut": _INVOICE,
    "OrderOut": _ORDER,
    "SimulatedCycle": {
        "cycle": _MARCH, "currency": "eur", "lines": _INVOICE["lines"], "total": "24.00", "billed": "21.00",
        "billed_currency": "eur", "difference": "3.00",
    },
    "EventOut": _EVENT,
    "DuplicateOut": {
        "customer_id": "cus_1", "event_name": "api_request", "event_id": "req_42", "idempotency_key": None, "times": 2,
        "conflict": True,
        "copies": [
            {"epoch": 1, "partition": 3, "offset": 1871, "index": 0, "value": "12.5", "received_at": _NOON},
            {"epoch": 1, "partition": 3, "offset": 1904, "index": 7, "value": "13", "received_at": _NOON},
        ],
    },
    "BenefitOut": {
        "benefit": "priority-support", "subscription_id": _SUBSCRIPTION_ID, "product_id": _PRODUCT_ID,
        "state": "active", "since": None, "reason": None, "invoice_id": None,
    },
}  # fmt: skip

EXAMPLES: Mapping[str, Any] = {
    **_SHOWN,
    **{f"Page_{name}_": {"data": [shown], "next_cursor": None} for name, shown in _SHOWN.items()},
    "MeterSpec": _METER,
    "MeterChanges": {"name": "Requests"},
    "ProductSpec": _PRODUCT,
    "ProductChanges": {"name": "Standard 2026", "benefits": ["priority-support", "sla"]},
    "CustomerSpec": _CUSTOMER,
    "CustomerChanges": {"email": "accounts@acme.example"},
    "SubscriptionSpec": {**_SUBSCRIPTION, "backdate": True},
    "SubscriptionChanges": {"collection_method": "send_invoice"},
    "CancelRequest": {"at": "cycle_end"},
    "ProductChoice": {"product_id": _PRODUCT_ID},
    "AlertRuleSpec": _RULE,
    "WebhookEndpointSpec": _ENDPOINT,
    "WebhookEndpointChanges": {"description": "on-call, EU"},
    "NewWebhookEndpointOut": {**_SHOWN["WebhookEndpointOut"], "secret": "whsec_q0…"},
    "ApiKeySpec": _KEY,
    "NewAlertRuleOut": {**_SHOWN["AlertRuleOut"], "customers_reached": 312},
    "NewApiKeyOut": {**_SHOWN["ApiKeyOut"], "secret": _SECRET},
    "OrganizationOut": {**_ORGANIZATION, **_MADE, "id": "default"},
    "OrganizationChanges": {"time_zone": "Europe/Vienna", "grace_seconds": 3600},
    "UsageAnswer": {"data": [_USAGE_ROW], "as_of": {"epoch": 1, "offsets": {"0": 1871}}},
    "AuditOut": {
        "as_of": {"epoch": 1, "offsets": {"0": 1871}},
        "balances": True,
        "accepted": {"events": 12000, "value": "12000"},
        "classes": {"billed": {"events": 11900, "value": "11900"}, "not due": {"events": 100, "value": "100"}},
        "conflicts": 0,
        "duplicates_at": [],
        "conflicts_at": [],
        "faults": [],
    },
    "AccrualRows": {
        "data": [
            {
                "customer_id": "cus_1",
                "subscription_id": _SUBSCRIPTION_ID,
                "product_id": _PRODUCT_ID,
                "meter_id": _METER_ID,
                "meter": "API requests",
                "period_start": "2026-03-01T00:00:00Z",
                "period_end": "2026-03-15T00:00:00Z",
                "quantity": "12000",
                "net": "21.00",
                "currency": "eur",
            }
        ],
        "problems": {},
    },
    "FinanceRows": {
        "data": [
            {
                "month": "2026-03",
                "meter_id": _METER_ID,
                "meter": "API requests",
                "quantity": "12000",
                "net": "21.00",
                "currency": "eur",
                "invoices": "1",
            }
        ]
    },
    "SimulationRequest": {"customer_id": "cus_1", "product": _PRODUCT, "from": _MARCH["start"], "to": _MARCH["end"]},
    "VerificationOut": {"ok": True, "hash": _INVOICE["hash"], "differences": []},
    "Page_ChangeOut_": {
        "data": [
            {
                "kind": "meter",
                "object_id": "mtr_2k5d0c3v9xw8q7e6r1t4y0u2",
                "version": 2,
                "archived": False,
                "at": "2026-03-30T12:00:00Z",
                "by": "dashboard, key_9m8n7b6v5c4x3z2a1s0d9f8g",
            }
        ],
        "next_cursor": None,
    },
    "AskedOut": {"accepted": True},
    "InvoiceSettleRequest": {"reason": "refunded by bank transfer"},
    "InvoiceVoidRequest": {"reason": "wrong address", "reissue": True},
    "InvoiceVoidedOut": {
        "invoice": {**_INVOICE, "state": "void", "reason": "wrong address", "amount_paid": "0.00"},
        "reissued_as": "inv_00112233445566778899aabbccddeeff",
    },
    "InvoiceCreditRequest": {"amount": "5.00", "reason": "outage on 12 March", "refund": True},
    "InvoiceCreditedOut": {"credit_note": _CREDIT_NOTE, "invoice": _INVOICE},
    "LiveUsage": {"data": [_LIVE_ROW], "lag": {"messages": 0, "seconds": 0.0}, "complete": True},
}
"""Name of a schema in the document → an instance of it."""
