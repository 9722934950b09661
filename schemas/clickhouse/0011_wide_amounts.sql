-- Amounts as wide as they can become: a price below 10^18 times a quantity below 10^29, and sums of those. Columns of
-- 38 digits could not take what a lawful price and lawful usage come to.

ALTER TABLE stored_invoices MODIFY COLUMN total Nullable(Decimal(76, 12)),
    MODIFY COLUMN tax Nullable(Decimal(76, 12)),
    MODIFY COLUMN amount_due Nullable(Decimal(76, 12)),
    MODIFY COLUMN amount_paid Nullable(Decimal(76, 12)),
    MODIFY COLUMN amount_remaining Nullable(Decimal(76, 12));

ALTER TABLE stored_invoice_lines MODIFY COLUMN quantity Decimal(76, 9),
    MODIFY COLUMN included Decimal(76, 9),
    MODIFY COLUMN priced_quantity Decimal(76, 9),
    MODIFY COLUMN amount Decimal(76, 12),
    MODIFY COLUMN tax Nullable(Decimal(76, 12));

ALTER TABLE stored_orders MODIFY COLUMN amount_paid Decimal(76, 12);

ALTER TABLE stored_adjustments MODIFY COLUMN amount Decimal(76, 12),
    MODIFY COLUMN net Nullable(Decimal(76, 12));

ALTER TABLE stored_alerts MODIFY COLUMN threshold Decimal(76, 12),
    MODIFY COLUMN quantity Decimal(76, 12);

ALTER TABLE stored_accruals MODIFY COLUMN quantity Decimal(76, 9),
    MODIFY COLUMN net Decimal(76, 12);

-- A view keeps the types that its columns had when it was made.
CREATE OR REPLACE VIEW invoices AS SELECT * FROM stored_invoices FINAL COMMENT 'Invoices in their present state';
CREATE OR REPLACE VIEW invoice_lines AS SELECT * FROM stored_invoice_lines FINAL COMMENT 'Lines of invoices, as they were fixed';
CREATE OR REPLACE VIEW orders AS SELECT * FROM stored_orders FINAL COMMENT 'Paid invoices, once each';
CREATE OR REPLACE VIEW alerts AS SELECT * FROM stored_alerts FINAL COMMENT 'Alerts that fired, once each';
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
    SELECT organization_id, month, meter_id, meter AS label, currency, toDecimal256(if(meter_id = '', 0, quantity), 9) AS quantity, net, invoice_id
    FROM finance_lines
    WHERE state != 'void'
    UNION ALL
    SELECT organization_id, month, '' AS meter_id, 'credit notes' AS label, currency, toDecimal256(0, 9) AS quantity, -ifNull(net, amount) AS net, invoice_id
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

CREATE OR REPLACE VIEW finance_accrual AS
SELECT * FROM stored_accruals
WHERE (organization_id, at, computed_at) IN (SELECT organization_id, at, max(computed_at) FROM stored_accruals GROUP BY organization_id, at)
COMMENT 'Used and not invoiced at a date, as `usage-billing finance accrual --keep` computed it last';

CREATE TABLE IF NOT EXISTS projection_failures
(
    kafka_topic LowCardinality(String),
    kafka_partition UInt16,
    kafka_offset Int64,
    table_name LowCardinality(String) COMMENT 'that does not take the row; empty: no row could be made of the record',
    organization_id String COMMENT 'empty: not known',
    reason String,
    record String COMMENT 'as it is in the log' CODEC(ZSTD(1)),
    found_at DateTime64(6, 'UTC')
)
ENGINE = ReplacingMergeTree(found_at)
ORDER BY (kafka_topic, kafka_partition, kafka_offset, table_name)
COMMENT 'Records that are in no table, since the sink started last: the others went on. Read with FINAL';

CREATE TABLE IF NOT EXISTS projection_progress
(
    kafka_topic LowCardinality(String),
    kafka_partition UInt16,
    next_offset Int64 COMMENT 'every record below it is in the tables, or in projection_failures',
    updated_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (kafka_topic, kafka_partition)
COMMENT 'How far catalog, ledger, alerts and dead letters are in the tables; read with FINAL';
