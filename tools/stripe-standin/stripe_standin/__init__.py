"""A stand-in for Stripe's billing API, with state: customers, invoices, payments, credit notes, webhooks, as Stripe
documents them.

It speaks one API version, which the installed official SDK pins (`state.API_VERSION`), and checks every parameter
against that SDK's own types. It refuses by name what it does not implement.

    form ─▶ app (key, idempotency, faults) ─▶ route ─▶ customers, payment_methods, invoices, invoice_items, …
                                                          │ records in memory, one transaction a request
                                                          ▼
                                               store (SQLite) ─▶ webhooks (signed, repeated)

Where its behaviour comes from:
- parameters, objects: the official SDK's types, and Stripe's own stripe-mock (a test compares every object's keys);
- test cards, decline codes, and which cards can't be attached: Stripe's page "Testing";
- what is kept under an idempotency key: "Idempotent requests", "Advanced error handling";
- texts of refusals, attempt counts, times of automatic finalization: recorded by others from Stripe's test mode at
  2026-08-26.dahlia;
- not verified, and marked so in the module that decides it: rounding of tax over several lines (totals), when
  Stripe charges an invoice that a call finalized with auto_advance, which events a 3D Secure demand makes
  (collection). Minimum charges are those of the invoice's currency; Stripe uses the settlement currency (money).
"""
