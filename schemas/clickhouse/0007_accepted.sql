-- What each organization had accepted when, a row a message: pages ask for a day of it, and usage_accepted has no time.

CREATE TABLE IF NOT EXISTS accepted_batches
(
    organization_id LowCardinality(String),
    received_at DateTime64(6, 'UTC') COMMENT 'when the gateway took it' CODEC(Delta, ZSTD(1)),
    kafka_epoch UInt16 CODEC(ZSTD(1)),
    kafka_partition UInt16 CODEC(ZSTD(1)),
    kafka_offset Int64 CODEC(Delta, ZSTD(1)),
    events UInt16 COMMENT 'of this organization in the message, duplicates too' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (organization_id, received_at, kafka_epoch, kafka_partition, kafka_offset)
COMMENT 'Events that were accepted, by organization and message; read with FINAL';

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_to_accepted_batches TO accepted_batches AS
SELECT organization AS organization_id, received_at, kafka_epoch, kafka_partition, kafka_offset, countEqual(organizations, organization) AS events
FROM (SELECT received_at, kafka_epoch, kafka_partition, kafka_offset, organization_id AS organizations FROM usage_batches_in)
ARRAY JOIN arrayDistinct(organizations) AS organization;
