-- What was configured, billed and told: projections of the topics catalog, billing.ledger, usage.alerts and
-- usage.dead_letters. Tables stored_… hold every version until it is merged; the views show the one in force.

CREATE TABLE IF NOT EXISTS stored_organizations
(
    id String,
    name String,
    time_zone LowCardinality(String),
    late_policy LowCardinality(String),
    stripe_account_id String COMMENT 'empty: the operator is the seller',
    created_at DateTime64(6, 'UTC'),
    archived Bool,
    version UInt64,
    document String COMMENT 'the whole object as JSON' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version) ORDER BY id;

CREATE TABLE IF NOT EXISTS stored_meters
(
    organization_id LowCardinality(String),
    id String,
    name String,
    event_name String COMMENT 'of the events that it reads',
    unit String,
    aggregation LowCardinality(String) COMMENT 'sum, count or max',
    created_at DateTime64(6, 'UTC'),
    archived Bool,
    version UInt64,
    document String COMMENT 'the whole object as JSON' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, id);

CREATE TABLE IF NOT EXISTS stored_customers
(
    organization_id LowCardinality(String),
    id String,
    name String,
    email String COMMENT 'empty: none',
    country LowCardinality(String) COMMENT 'two letters; empty: unknown',
    stripe_customer_id String COMMENT 'as configured; empty: made at the first invoice',
    created_at DateTime64(6, 'UTC'),
    archived Bool,
    version UInt64,
    document String COMMENT 'the whole object as JSON' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, id);

CREATE TABLE IF NOT EXISTS stored_products
(
    organization_id LowCardinality(String),
    id String,
    name String,
    currency LowCardinality(String),
    meter_ids Array(String) COMMENT 'meters that it prices',
    prices String COMMENT 'JSON' CODEC(ZSTD(1)),
    benefits Array(String),
    created_at DateTime64(6, 'UTC'),
    archived Bool,
    version UInt64,
    document String COMMENT 'the whole object as JSON' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, id);

CREATE TABLE IF NOT EXISTS stored_subscriptions
(
    organization_id LowCardinality(String),
    id String,
    customer_id String,
    product_id String COMMENT 'the first one; later changes are in the document',
    started_at DateTime64(6, 'UTC') COMMENT 'anchor of its cycles',
    ends_at Nullable(DateTime64(6, 'UTC')) COMMENT 'exclusive; NULL: it goes on',
    billing_interval LowCardinality(String),
    collection_method LowCardinality(String),
    time_zone LowCardinality(String),
    created_at DateTime64(6, 'UTC'),
    archived Bool,
    version UInt64,
    document String COMMENT 'the whole object as JSON' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, id);

CREATE TABLE IF NOT EXISTS stored_invoices
(
    organization_id LowCardinality(String),
    id String,
    customer_id String,
    subscription_id String,
    cycle_start DateTime64(6, 'UTC'),
    cycle_end DateTime64(6, 'UTC') COMMENT 'exclusive',
    state LowCardinality(String) COMMENT 'waiting, computed, draft, open, paid, payment_failed, uncollectible, mismatch or void',
    reason String COMMENT 'of waiting, mismatch or a failure',
    currency LowCardinality(String),
    total Nullable(Decimal(38, 12)) COMMENT 'major units, before tax; NULL while waiting',
    tax Nullable(Decimal(38, 12)) COMMENT 'major units, as Stripe computed it',
    amount_due Nullable(Decimal(38, 12)),
    amount_paid Nullable(Decimal(38, 12)),
    stripe_invoice_id String,
    number String COMMENT 'of the legal document, which is Stripe''s',
    hosted_invoice_url String,
    watermark String COMMENT 'up to where usage was counted, JSON',
    hash String COMMENT 'SHA-256 of all that the invoice says',
    updated_at DateTime64(6, 'UTC'),
    version UInt64 COMMENT 'offset in the ledger of the record that made it so',
    document String COMMENT 'the invoice as the API shows it, JSON' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, customer_id, id);

CREATE TABLE IF NOT EXISTS stored_invoice_lines
(
    organization_id LowCardinality(String),
    customer_id String,
    invoice_id String,
    line UInt16 COMMENT 'place on the invoice, from 0',
    subscription_id String,
    cycle_start DateTime64(6, 'UTC'),
    cycle_end DateTime64(6, 'UTC') COMMENT 'exclusive',
    meter_id String COMMENT 'empty: a flat fee or a minimum',
    model LowCardinality(String),
    description String,
    quantity Decimal(38, 9) COMMENT 'units used',
    included Decimal(38, 9) COMMENT 'units that cost nothing',
    priced_quantity Decimal(38, 9),
    currency LowCardinality(String),
    amount Decimal(38, 12) COMMENT 'major units, before tax',
    tiers String COMMENT 'what each tier adds, JSON' CODEC(ZSTD(1)),
    version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, customer_id, invoice_id, line);

CREATE TABLE IF NOT EXISTS stored_orders
(
    organization_id LowCardinality(String),
    id String,
    invoice_id String,
    customer_id String,
    subscription_id String,
    currency LowCardinality(String),
    amount_paid Decimal(38, 12) COMMENT 'major units, as Stripe collected them',
    paid_at DateTime64(6, 'UTC'),
    recorded_at DateTime64(6, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, customer_id, id);

CREATE TABLE IF NOT EXISTS stored_alerts
(
    organization_id LowCardinality(String),
    id String,
    rule_id String,
    customer_id String,
    meter_id String,
    kind LowCardinality(String) COMMENT 'quantity, included_percent, typical_percent or amount',
    threshold Decimal(38, 12),
    quantity Decimal(38, 12) COMMENT 'what was reached, in the unit of the kind',
    cycle_start DateTime64(6, 'UTC'),
    cycle_end DateTime64(6, 'UTC') COMMENT 'exclusive',
    fired_at DateTime64(6, 'UTC'),
    version UInt64 COMMENT 'complement of the offset: the first of an id stays'
)
ENGINE = ReplacingMergeTree(version) ORDER BY (organization_id, customer_id, id);

CREATE TABLE IF NOT EXISTS stored_dead_letters
(
    kafka_topic LowCardinality(String),
    kafka_epoch UInt16,
    kafka_partition UInt16,
    kafka_offset Int64,
    reason LowCardinality(String),
    detail String,
    key String COMMENT 'base64',
    payload String COMMENT 'the message, base64' CODEC(ZSTD(1)),
    found_at DateTime64(6, 'UTC'),
    version UInt64
)
ENGINE = ReplacingMergeTree(version) ORDER BY (kafka_topic, kafka_epoch, kafka_partition, kafka_offset);

CREATE VIEW IF NOT EXISTS organizations AS SELECT * FROM stored_organizations FINAL COMMENT 'The tenants';
CREATE VIEW IF NOT EXISTS meters AS SELECT * FROM stored_meters FINAL COMMENT 'What is made of events: catalog, version in force';
CREATE VIEW IF NOT EXISTS customers AS SELECT * FROM stored_customers FINAL COMMENT 'Who is metered: catalog, version in force';
CREATE VIEW IF NOT EXISTS products AS SELECT * FROM stored_products FINAL COMMENT 'What is sold: catalog, version in force';
CREATE VIEW IF NOT EXISTS subscriptions AS SELECT * FROM stored_subscriptions FINAL COMMENT 'Who bought what: catalog, version in force';
CREATE VIEW IF NOT EXISTS invoices AS SELECT * FROM stored_invoices FINAL COMMENT 'Invoices in their present state';
CREATE VIEW IF NOT EXISTS invoice_lines AS SELECT * FROM stored_invoice_lines FINAL COMMENT 'Lines of invoices, as they were fixed';
CREATE VIEW IF NOT EXISTS orders AS SELECT * FROM stored_orders FINAL COMMENT 'Paid invoices, once each';
CREATE VIEW IF NOT EXISTS alerts AS SELECT * FROM stored_alerts FINAL COMMENT 'Alerts that fired, once each';
CREATE VIEW IF NOT EXISTS dead_letters AS SELECT * FROM stored_dead_letters FINAL COMMENT 'Messages that could not be read';
