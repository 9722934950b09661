-- What became of invoices: by what they are owed, credited, refunded and disputed; and views for finance.

ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS revision UInt16 DEFAULT 1 COMMENT 'of the cycle''s invoice; a later one replaces a void one';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS reissued Bool COMMENT 'void, and its cycle is invoiced by the next revision';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS product_id String COMMENT 'that it was priced with; empty while waiting';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS amount_remaining Nullable(Decimal(38, 12)) COMMENT 'of the amount due, what is still to be paid';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS issued_at Nullable(DateTime64(6, 'UTC')) COMMENT 'when it became a legal document at Stripe, or was settled at 0';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS due_at Nullable(DateTime64(6, 'UTC'));
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS paid_at Nullable(DateTime64(6, 'UTC'));
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS unpaid_reason LowCardinality(String) COMMENT 'why nothing will be collected by itself; empty: it is paid, or Stripe still collects';
ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS unpaid_since Nullable(DateTime64(6, 'UTC')) COMMENT 'may lie ahead: the day that a sent invoice is due';

ALTER TABLE stored_invoice_lines ADD COLUMN IF NOT EXISTS product_id String;
ALTER TABLE stored_invoice_lines ADD COLUMN IF NOT EXISTS product_name String COMMENT 'as it was when the invoice was fixed';
ALTER TABLE stored_invoice_lines ADD COLUMN IF NOT EXISTS meter_name String COMMENT 'as it was when the invoice was fixed';
ALTER TABLE stored_invoice_lines ADD COLUMN IF NOT EXISTS month Date COMMENT 'first day of the month, in the subscription''s zone, in which the cycle began';
ALTER TABLE stored_invoice_lines ADD COLUMN IF NOT EXISTS tax Nullable(Decimal(38, 12)) COMMENT 'its share of the invoice''s tax, by amount; the shares add up to it';

CREATE TABLE IF NOT EXISTS stored_adjustments
(
    organization_id LowCardinality(String),
    customer_id String,
    invoice_id String,
    id String COMMENT 'Stripe''s',
    type LowCardinality(String) COMMENT 'credit_note, refund or dispute',
    amount Decimal(38, 12) COMMENT 'major units, tax included',
    net Nullable(Decimal(38, 12)) COMMENT 'without tax; of credit notes',
    currency LowCardinality(String),
    status LowCardinality(String) COMMENT 'Stripe''s',
    reason String,
    number String COMMENT 'of the document; empty: it has none',
    month Date COMMENT 'of the invoice''s lines',
    created_at DateTime64(6, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, customer_id, invoice_id, id);

CREATE OR REPLACE VIEW invoices AS SELECT * FROM stored_invoices FINAL COMMENT 'Invoices in their present state';
CREATE OR REPLACE VIEW invoice_lines AS SELECT * FROM stored_invoice_lines FINAL COMMENT 'Lines of invoices, as they were fixed';
CREATE OR REPLACE VIEW adjustments AS SELECT * FROM stored_adjustments FINAL COMMENT 'Credit notes, refunds and disputes in their present state';

CREATE OR REPLACE VIEW finance_lines AS
SELECT
    lines.organization_id AS organization_id,
    invoices.number AS number,
    lines.invoice_id AS invoice_id,
    lines.line AS line,
    lines.customer_id AS customer_id,
    lines.subscription_id AS subscription_id,
    lines.cycle_start AS period_start,
    lines.cycle_end AS period_end,
    lines.month AS month,
    lines.product_id AS product_id,
    lines.product_name AS product,
    lines.meter_id AS meter_id,
    lines.meter_name AS meter,
    lines.description AS description,
    lines.quantity AS quantity,
    lines.amount AS net,
    lines.tax AS tax,
    lines.currency AS currency,
    invoices.state AS state,
    CAST(invoices.state = 'paid' AS Bool) AS paid,
    invoices.issued_at AS issued_at,
    invoices.paid_at AS paid_at
FROM (SELECT * FROM stored_invoice_lines FINAL) AS lines
INNER JOIN (SELECT * FROM stored_invoices FINAL) AS invoices
    ON invoices.organization_id = lines.organization_id AND invoices.customer_id = lines.customer_id AND invoices.id = lines.invoice_id
WHERE invoices.issued_at IS NOT NULL
COMMENT 'Every line of every issued invoice, void ones too';

CREATE OR REPLACE VIEW finance_revenue AS
SELECT organization_id, month, meter_id, any(label) AS meter, currency, sum(quantity) AS quantity, sum(net) AS net, uniqExact(invoice_id) AS invoices
FROM
(
    SELECT organization_id, month, meter_id, meter AS label, currency, toDecimal128(if(meter_id = '', 0, quantity), 9) AS quantity, net, invoice_id
    FROM finance_lines
    WHERE state != 'void'
    UNION ALL
    SELECT organization_id, month, '' AS meter_id, 'credit notes' AS label, currency, toDecimal128(0, 9) AS quantity, -ifNull(net, amount) AS net, invoice_id
    FROM stored_adjustments FINAL
    WHERE type = 'credit_note' AND status = 'issued'
)
GROUP BY organization_id, month, currency, meter_id, if(meter_id = '', label, '')
COMMENT 'Issued and not void, before tax, by the month in which the cycle began; fixed prices and credit notes have no meter_id';

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
    unpaid_reason,
    issued_at,
    due_at,
    hosted_invoice_url
FROM stored_invoices FINAL
WHERE state IN ('open', 'payment_failed', 'uncollectible') AND issued_at IS NOT NULL
COMMENT 'Issued invoices of which something is still to be paid';

CREATE TABLE IF NOT EXISTS stored_accruals
(
    organization_id LowCardinality(String),
    at DateTime64(6, 'UTC') COMMENT 'what was used before it and not invoiced by then',
    customer_id String,
    subscription_id String,
    product_id String,
    line UInt16,
    meter_id String COMMENT 'empty: a flat fee or a minimum',
    meter String,
    period_start DateTime64(6, 'UTC'),
    period_end DateTime64(6, 'UTC') COMMENT 'exclusive',
    quantity Decimal(38, 9),
    net Decimal(38, 12) COMMENT 'major units, before tax',
    currency LowCardinality(String),
    computed_at DateTime64(6, 'UTC')
)
ENGINE = MergeTree ORDER BY (organization_id, at, computed_at, customer_id, subscription_id, period_start, line);

CREATE OR REPLACE VIEW finance_accrual AS
SELECT * FROM stored_accruals
WHERE (organization_id, at, computed_at) IN (SELECT organization_id, at, max(computed_at) FROM stored_accruals GROUP BY organization_id, at)
COMMENT 'Used and not invoiced at a date, as `usage-billing finance accrual --keep` computed it last';
