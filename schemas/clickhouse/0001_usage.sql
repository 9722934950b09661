-- What was metered: the door that the sink inserts through, and the tables and the view behind it.
-- Every statement may run again, or in two processes at once: the runner has no lock.

CREATE TABLE IF NOT EXISTS kafka_epochs
(
    epoch UInt16 COMMENT 'number of an incarnation of usage.events, from 1',
    topic_id String COMMENT 'Kafka''s own id of the topic, new whenever it is made again',
    registered_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree
ORDER BY (topic_id, epoch)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Incarnations of the topic usage.events; the greatest epoch of a topic_id is its number';

CREATE TABLE IF NOT EXISTS usage_batches_in
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
    timestamp Array(DateTime64(6, 'UTC')),
    value Array(Nullable(Decimal(38, 9))),
    identity Array(String),
    properties Array(Map(String, String)),
    guard_after FixedString(16),
    -- Bytes that the sink draws anew for each insert and puts around each message: a message that ends before its last
    -- byte, or after it, does not have them on both sides.
    CONSTRAINT whole CHECK guard_before = guard_after,
    -- 10 bits of epoch, 44 of offset and 10 of index are one number: the order of the log.
    CONSTRAINT coordinates CHECK kafka_epoch BETWEEN 1 AND 1023 AND kafka_offset BETWEEN 0 AND 17592186044415,
    CONSTRAINT events CHECK length(customer_id) BETWEEN 1 AND 1024,
    CONSTRAINT columns CHECK length(organization_id) = length(customer_id)
        AND length(event_name) = length(customer_id)
        AND length(timestamp) = length(customer_id)
        AND length(value) = length(customer_id)
        AND (length(identity) = 0 OR length(identity) = length(customer_id))
        AND (length(properties) = 0 OR length(properties) = length(customer_id)),
    CONSTRAINT text CHECK arrayAll(x -> isValidUTF8(x), organization_id)
        AND arrayAll(x -> isValidUTF8(x), customer_id)
        AND arrayAll(x -> isValidUTF8(x), event_name)
        AND arrayAll(x -> isValidUTF8(x), identity),
    -- No sum of fewer than 10^11 such values leaves Decimal(38, 9).
    CONSTRAINT magnitude CHECK arrayAll(
        x -> x IS NULL OR x BETWEEN -999999999999999999.999999999::Decimal(38, 9) AND 999999999999999999.999999999::Decimal(38, 9),
        value)
)
ENGINE = Null
COMMENT 'Where the sink inserts messages of usage.events, one a row; keeps nothing, the views below do';

CREATE TABLE IF NOT EXISTS usage_events
(
    organization_id LowCardinality(String) COMMENT 'the tenant',
    customer_id String,
    event_name LowCardinality(String),
    identity String COMMENT 'c:event_id, k:idempotency_key:index, or empty: the position is the identity' CODEC(ZSTD(1)),
    position UInt64 COMMENT 'epoch << 54 | offset << 10 | index where identity is empty, else 0' CODEC(Delta, ZSTD(1)),
    timestamp DateTime64(6, 'UTC') COMMENT 'when the usage happened' CODEC(Delta, ZSTD(1)),
    value Nullable(Decimal(38, 9)) CODEC(ZSTD(1)),
    properties Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    received_at DateTime64(6, 'UTC') COMMENT 'when the gateway took it' CODEC(Delta, ZSTD(1)),
    kafka_epoch UInt16 COMMENT 'see kafka_epochs' CODEC(ZSTD(1)),
    kafka_partition UInt16 CODEC(ZSTD(1)),
    kafka_offset Int64 CODEC(Delta, ZSTD(1)),
    kafka_index UInt16 COMMENT 'place in the message, from 0' CODEC(Delta, ZSTD(1)),
    version UInt64 COMMENT 'complement of epoch << 54 | offset << 10 | index: the first in the log wins' CODEC(Delta, ZSTD(1))
)
ENGINE = ReplacingMergeTree(version)
-- Never by a time: pruning before FINAL would let a duplicate in another month count again.
PARTITION BY kafka_partition % 8
ORDER BY (organization_id, customer_id, event_name, identity, position)
-- What is answered as stored is on the disk: the sink commits it, and Kafka forgets it after a time.
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Usage events as they were stored, duplicates too until they are merged: read the view usage';

CREATE TABLE IF NOT EXISTS usage_accepted
(
    kafka_epoch UInt16 CODEC(ZSTD(1)),
    kafka_partition UInt16 CODEC(ZSTD(1)),
    kafka_offset Int64 CODEC(Delta, ZSTD(1)),
    kafka_index UInt16 CODEC(Delta, ZSTD(1)),
    organization_id LowCardinality(String),
    identity_hash UInt64 COMMENT 'cityHash64(organization_id, customer_id, event_name, identity, position)',
    value Nullable(Decimal(38, 9)) CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (kafka_epoch, kafka_partition, kafka_offset, kafka_index)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Every event that was accepted, duplicates too, by its place in the log; read with FINAL';

CREATE TABLE IF NOT EXISTS ingest_batches
(
    kafka_epoch UInt16 CODEC(ZSTD(1)),
    kafka_partition UInt16 CODEC(ZSTD(1)),
    kafka_offset Int64 COMMENT 'of the message; of a gap, the first offset that is missing' CODEC(Delta, ZSTD(1)),
    next_offset Int64 COMMENT 'kafka_offset + 1; of a gap, the offset after it' CODEC(Delta, ZSTD(1)),
    batch_id FixedString(16) COMMENT 'made by the gateway; zeros where the message could not be read',
    received_at DateTime64(6, 'UTC') COMMENT 'when the gateway took it' CODEC(Delta, ZSTD(1)),
    stored_at DateTime64(6, 'UTC') COMMENT 'when ClickHouse had it' CODEC(Delta, ZSTD(1)),
    events UInt16 COMMENT 'stored from this message' CODEC(ZSTD(1)),
    value_sum Decimal(38, 9) COMMENT 'of the events that have a value' CODEC(ZSTD(1)),
    reason LowCardinality(String) DEFAULT '' COMMENT 'why there are no events: a dead letter''s reason, or expired, or no_message'
)
-- Of a message set aside and later stored after all, the row with events stays.
ENGINE = ReplacingMergeTree(events)
ORDER BY (kafka_epoch, kafka_partition, kafka_offset)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Messages of usage.events that were dealt with, one a row; read with FINAL. What is contiguous here is stored';

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_to_events TO usage_events AS
WITH bitOr(bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)), toUInt64(place - 1)) AS order_in_log
SELECT
    organization_of AS organization_id,
    customer_of AS customer_id,
    name_of AS event_name,
    identity_of AS identity,
    if(identity_of = '', order_in_log, 0) AS position,
    timestamp_of AS timestamp,
    value_of AS value,
    properties_of AS properties,
    received_at,
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    place - 1 AS kafka_index,
    bitNot(order_in_log) AS version
FROM
(
    -- An array joined under the name of an output column would resolve in circles: they get names of their own.
    SELECT
        kafka_epoch,
        kafka_partition,
        kafka_offset,
        received_at,
        organization_id AS organizations,
        customer_id AS customers,
        event_name AS names,
        timestamp AS timestamps,
        value AS amounts,
        arrayResize(identity, length(customer_id), '') AS identities,
        arrayResize(properties, length(customer_id), map()) AS property_maps,
        arrayEnumerate(customer_id) AS places
    FROM usage_batches_in
)
ARRAY JOIN
    organizations AS organization_of,
    customers AS customer_of,
    names AS name_of,
    timestamps AS timestamp_of,
    amounts AS value_of,
    identities AS identity_of,
    property_maps AS properties_of,
    places AS place;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_to_accepted TO usage_accepted AS
WITH bitOr(bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)), toUInt64(place - 1)) AS order_in_log
SELECT
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    place - 1 AS kafka_index,
    organization_of AS organization_id,
    cityHash64(organization_of, customer_of, name_of, identity_of, if(identity_of = '', order_in_log, 0)) AS identity_hash,
    value_of AS value
FROM
(
    SELECT
        kafka_epoch,
        kafka_partition,
        kafka_offset,
        organization_id AS organizations,
        customer_id AS customers,
        event_name AS names,
        value AS amounts,
        arrayResize(identity, length(customer_id), '') AS identities,
        arrayEnumerate(customer_id) AS places
    FROM usage_batches_in
)
ARRAY JOIN
    organizations AS organization_of,
    customers AS customer_of,
    names AS name_of,
    amounts AS value_of,
    identities AS identity_of,
    places AS place;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_to_batches TO ingest_batches AS
SELECT
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    kafka_offset + 1 AS next_offset,
    batch_id,
    received_at,
    now64(6, 'UTC') AS stored_at,
    length(customer_id) AS events,
    arraySum(x -> ifNull(x, 0::Decimal(38, 9)), value) AS value_sum
FROM usage_batches_in;

CREATE VIEW IF NOT EXISTS usage
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
-- A customer never leaves its partition, so nothing is to be collapsed across them; and no condition on a timestamp may
-- drop a first event before its duplicates are collapsed into it.
SETTINGS do_not_merge_across_partitions_select_final = 1, optimize_move_to_prewhere_if_final = 0
COMMENT 'What counts once: each identity (or position) by the first event in the log';

CREATE TABLE IF NOT EXISTS totals_requests
(
    request_id UUID,
    position UInt32 COMMENT 'which of the request''s windows',
    organization_id String,
    customer_id String,
    event_name String,
    start_us Int64,
    end_us Int64,
    requested_at DateTime DEFAULT now()
)
ENGINE = MergeTree
ORDER BY (request_id, organization_id, customer_id, event_name)
TTL requested_at + INTERVAL 1 DAY
COMMENT 'Windows whose totals billing has asked for, joined to events on the server; gone after a day';
