-- What the audit needs to tell the class of every event: what an invoice counted, and the windows that it asks with.

ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS active_until DateTime64(6, 'UTC') DEFAULT cycle_end COMMENT 'end of what is billed, exclusive';

ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS event_names Array(String) COMMENT 'that its meters read; empty while waiting';

ALTER TABLE stored_invoices ADD COLUMN IF NOT EXISTS trued_up Bool DEFAULT false COMMENT 'earlier cycles of the subscription were held against this watermark too';

CREATE OR REPLACE VIEW invoices AS SELECT * FROM stored_invoices FINAL COMMENT 'Invoices in their present state';

CREATE TABLE IF NOT EXISTS audit_windows
(
    request_id UUID,
    organization_id String,
    customer_id String,
    event_name String,
    start_us Int64,
    end_us Int64,
    billed_below UInt64 COMMENT 'order in the log: events below it are on the invoice',
    trued_below UInt64 COMMENT 'order in the log: events from billed_below on and below it are on a later one',
    class_billed UInt8,
    class_late UInt8 COMMENT 'of events at or above both',
    requested_at DateTime DEFAULT now()
)
ENGINE = MergeTree
ORDER BY (request_id, organization_id, customer_id, event_name)
TTL requested_at + INTERVAL 1 DAY
COMMENT 'When which events of whom are priced, as an audit asks; gone after a day';
