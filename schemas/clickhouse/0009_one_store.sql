-- What tells a store from an older copy of it that takes its place.

CREATE TABLE IF NOT EXISTS store_marks
(
    mark UUID,
    left_at DateTime DEFAULT now()
)
ENGINE = MergeTree
ORDER BY mark
TTL left_at + INTERVAL 1 DAY
COMMENT 'Left before something is counted: while it is there, no older copy has taken the place of what was counted';

CREATE TABLE IF NOT EXISTS coverage_checkpoints
(
    kafka_epoch UInt16,
    kafka_partition UInt16,
    next_offset Int64 COMMENT 'everything below it was in ingest_batches',
    checked_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (kafka_epoch, kafka_partition)
COMMENT 'How far ingest_batches was seen to be complete, so that only what came since is read again';
