-- Tombstones: events that were voided do not count. They lie in usage.events among the events, have coordinates like
-- them, and come through a door of their own.

CREATE TABLE IF NOT EXISTS usage_voids_in
(
    kafka_epoch UInt16,
    kafka_partition UInt16,
    kafka_offset Int64,
    guard_before FixedString(16),
    batch_id FixedString(16),
    received_at DateTime64(6, 'UTC'),
    organization_id Array(String),
    customer_id Array(String),
    event_name Array(String),
    identity Array(String),
    reason Array(String),
    guard_after FixedString(16),
    CONSTRAINT whole CHECK guard_before = guard_after,
    CONSTRAINT coordinates CHECK kafka_epoch BETWEEN 1 AND 1023 AND kafka_offset BETWEEN 0 AND 17592186044415,
    CONSTRAINT tombstones CHECK length(customer_id) BETWEEN 1 AND 1024,
    CONSTRAINT columns CHECK length(organization_id) = length(customer_id)
        AND length(event_name) = length(customer_id)
        AND length(identity) = length(customer_id)
        AND length(reason) = length(customer_id),
    -- An event without an identity has no name that a tombstone could call it by.
    CONSTRAINT text CHECK arrayAll(x -> isValidUTF8(x), organization_id)
        AND arrayAll(x -> isValidUTF8(x), customer_id)
        AND arrayAll(x -> isValidUTF8(x), event_name)
        AND arrayAll(x -> isValidUTF8(x) AND x != '', identity)
        AND arrayAll(x -> isValidUTF8(x), reason)
)
ENGINE = Null
COMMENT 'Where the sink inserts messages of tombstones, one a row; keeps nothing, the views below do';

CREATE TABLE IF NOT EXISTS usage_voids
(
    organization_id LowCardinality(String) COMMENT 'the tenant',
    customer_id String,
    event_name LowCardinality(String),
    identity String COMMENT 'of the event that does not count, c:event_id',
    reason String COMMENT 'as the merchant gave it',
    received_at DateTime64(6, 'UTC') COMMENT 'when the gateway took the tombstone',
    kafka_epoch UInt16,
    kafka_partition UInt16,
    kafka_offset Int64,
    kafka_index UInt16 COMMENT 'place in the message, from 0',
    version UInt64 COMMENT 'complement of the order in the log: the first tombstone of an identity stays'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (organization_id, customer_id, event_name, identity)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Events that were voided, by identity; those of a watermark are the tombstones below it';

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_to_voids TO usage_voids AS
SELECT
    organization_of AS organization_id,
    customer_of AS customer_id,
    name_of AS event_name,
    identity_of AS identity,
    reason_of AS reason,
    received_at,
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    place - 1 AS kafka_index,
    bitNot(bitOr(bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)), toUInt64(place - 1))) AS version
FROM
(
    SELECT
        kafka_epoch,
        kafka_partition,
        kafka_offset,
        received_at,
        organization_id AS organizations,
        customer_id AS customers,
        event_name AS names,
        identity AS identities,
        reason AS reasons,
        arrayEnumerate(customer_id) AS places
    FROM usage_voids_in
)
ARRAY JOIN
    organizations AS organization_of,
    customers AS customer_of,
    names AS name_of,
    identities AS identity_of,
    reasons AS reason_of,
    places AS place;

-- Coverage counts messages, and a message of tombstones is one.
CREATE MATERIALIZED VIEW IF NOT EXISTS usage_voids_to_batches TO ingest_batches AS
SELECT
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    kafka_offset + 1 AS next_offset,
    batch_id,
    received_at,
    now64(6, 'UTC') AS stored_at,
    0 AS events,
    0::Decimal(38, 9) AS value_sum,
    'void' AS reason
FROM usage_voids_in;

CREATE OR REPLACE VIEW usage
(
    organization_id LowCardinality(String) COMMENT 'the tenant',
    customer_id String,
    event_name LowCardinality(String),
    event_id String COMMENT 'as its producer named it; empty without a name',
    timestamp DateTime64(6, 'UTC') COMMENT 'when the usage happened',
    value Nullable(Decimal(38, 9)),
    properties Map(LowCardinality(String), String),
    received_at DateTime64(6, 'UTC') COMMENT 'when the gateway took it',
    kafka_epoch UInt16 COMMENT 'see kafka_epochs',
    kafka_partition UInt16,
    kafka_offset Int64,
    kafka_index UInt16 COMMENT 'place in the message, from 0'
)
AS
SELECT
    organization_id,
    customer_id,
    event_name,
    if(startsWith(identity, 'c:'), substring(identity, 3), '') AS event_id,
    timestamp,
    value,
    properties,
    received_at,
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    kafka_index
FROM usage_events FINAL
WHERE (organization_id, customer_id, event_name, identity) NOT IN
    (SELECT organization_id, customer_id, event_name, identity FROM usage_voids)
-- A customer never leaves its partition, so nothing is to be collapsed across them; and no condition on a timestamp may
-- drop a first event before its duplicates are collapsed into it.
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 0
COMMENT 'What counts once: each identity (or position) by the first event in the log, unless it was voided';
