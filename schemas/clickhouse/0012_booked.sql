-- Revenue by the month in which documents were booked, so that a month that is closed stays as it was.

ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS booked_month Nullable(Date) COMMENT 'first day of the month of issued_at, in the subscription''s zone';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS void_month Nullable(Date) COMMENT 'the same of its void';
ALTER TABLE stored_adjustments ADD COLUMN IF NOT EXISTS booked_month Nullable(Date) COMMENT 'the same of created_at';

CREATE OR REPLACE VIEW invoices AS SELECT * FROM stored_invoices FINAL COMMENT 'Invoices in their present state';
CREATE OR REPLACE VIEW adjustments AS SELECT * FROM stored_adjustments FINAL COMMENT 'Credit notes, refunds and disputes in their present state';

CREATE OR REPLACE VIEW finance_revenue_by_period AS
SELECT organization_id, month, meter_id, any(label) AS meter, currency, sum(quantity) AS quantity, sum(net) AS net, uniqExact(invoice_id) AS invoices
FROM
(
    SELECT organization_id, month, meter_id, meter AS label, currency, toDecimal256(if(meter_id = '', 0, quantity), 9) AS quantity, net, invoice_id
    FROM finance_lines
    WHERE state != 'void'
    UNION ALL
    SELECT organization_id, month, '' AS meter_id, 'credit notes' AS label, currency, toDecimal256(0, 9) AS quantity, -ifNull(net, amount) AS net, invoice_id
    FROM stored_adjustments FINAL
    WHERE type = 'credit_note' AND status = 'issued'
)
GROUP BY organization_id, month, currency, meter_id, if(meter_id = '', label, '')
COMMENT 'Issued and not void, before tax, by the month in which the cycle began: changes with late documents';

CREATE OR REPLACE VIEW finance_revenue AS
SELECT organization_id, month, meter_id, any(label) AS meter, currency, sum(quantity) AS quantity, sum(net) AS net, uniqExactIf(invoice_id, counted) AS invoices
FROM
(
    SELECT
        booked.organization_id AS organization_id,
        booked.month AS month,
        lines.meter_id AS meter_id,
        lines.meter_name AS label,
        lines.currency AS currency,
        toDecimal256(multiIf(lines.meter_id = '', 0, booked.sign < 0, -lines.quantity, lines.quantity), 9) AS quantity,
        if(booked.sign < 0, -lines.amount, lines.amount) AS net,
        lines.invoice_id AS invoice_id,
        booked.sign > 0 AND booked.state != 'void' AS counted
    FROM (SELECT * FROM stored_invoice_lines FINAL) AS lines
    INNER JOIN
    (
        SELECT organization_id, customer_id, id, state, toInt8(1) AS sign, ifNull(booked_month, toStartOfMonth(assumeNotNull(issued_at))) AS month
        FROM stored_invoices FINAL WHERE issued_at IS NOT NULL
        UNION ALL
        SELECT organization_id, customer_id, id, state, toInt8(-1) AS sign, ifNull(void_month, toStartOfMonth(updated_at)) AS month
        FROM stored_invoices FINAL WHERE issued_at IS NOT NULL AND state = 'void'
    ) AS booked ON booked.organization_id = lines.organization_id AND booked.customer_id = lines.customer_id AND booked.id = lines.invoice_id
    UNION ALL
    SELECT
        organization_id,
        ifNull(booked_month, toStartOfMonth(created_at)) AS month,
        '' AS meter_id,
        'credit notes' AS label,
        currency,
        toDecimal256(0, 9) AS quantity,
        -ifNull(net, amount) AS net,
        invoice_id,
        true AS counted
    FROM stored_adjustments FINAL
    WHERE type = 'credit_note' AND status = 'issued'
)
GROUP BY organization_id, month, currency, meter_id, if(meter_id = '', label, '')
COMMENT 'Before tax, by the month of issue, and of each void and credit note; fixed prices and credit notes have no meter_id';

CREATE OR REPLACE VIEW finance_open_items AS
SELECT
    organization_id,
    number,
    id AS invoice_id,
    customer_id,
    subscription_id,
    cycle_start AS period_start,
    cycle_end AS period_end,
    currency,
    total AS net,
    tax,
    amount_due,
    amount_paid,
    ifNull(amount_remaining, amount_due - ifNull(amount_paid, 0)) AS amount_open,
    state,
    if(unpaid_reason = 'overdue' AND ifNull(unpaid_since > now64(6), false), '', unpaid_reason) AS unpaid_reason,
    issued_at,
    due_at,
    hosted_invoice_url
FROM stored_invoices FINAL
WHERE state IN ('open', 'payment_failed', 'uncollectible') AND issued_at IS NOT NULL
COMMENT 'Issued invoices of which something is still to be paid';
