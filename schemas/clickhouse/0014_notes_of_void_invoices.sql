-- A credit note of a void invoice takes nothing off revenue: with the void it is taken back, too.

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
        AND (organization_id, customer_id, invoice_id) NOT IN (SELECT organization_id, customer_id, id FROM stored_invoices FINAL WHERE state = 'void')
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
        notes.organization_id AS organization_id,
        notes.month AS month,
        '' AS meter_id,
        'credit notes' AS label,
        notes.currency AS currency,
        toDecimal256(0, 9) AS quantity,
        notes.net AS net,
        notes.invoice_id AS invoice_id,
        notes.counted AS counted
    FROM
    (
        SELECT
            organization_id, currency, invoice_id,
            ifNull(booked_month, toStartOfMonth(created_at)) AS month,
            -ifNull(net, amount) AS net,
            (organization_id, customer_id, invoice_id) NOT IN (SELECT organization_id, customer_id, id FROM stored_invoices FINAL WHERE state = 'void') AS counted
        FROM stored_adjustments FINAL
        WHERE type = 'credit_note' AND status = 'issued'
        UNION ALL
        SELECT
            note.organization_id AS organization_id, note.currency AS currency, note.invoice_id AS invoice_id,
            void.month AS month,
            ifNull(note.net, note.amount) AS net,
            false AS counted
        FROM (SELECT * FROM stored_adjustments FINAL WHERE type = 'credit_note' AND status = 'issued') AS note
        INNER JOIN
        (
            SELECT organization_id, customer_id, id, ifNull(void_month, toStartOfMonth(updated_at)) AS month
            FROM stored_invoices FINAL WHERE issued_at IS NOT NULL AND state = 'void'
        ) AS void ON void.organization_id = note.organization_id AND void.customer_id = note.customer_id AND void.id = note.invoice_id
    ) AS notes
)
GROUP BY organization_id, month, currency, meter_id, if(meter_id = '', label, '')
COMMENT 'Before tax, by the month of issue, and of each void and credit note; fixed prices and credit notes have no meter_id';
