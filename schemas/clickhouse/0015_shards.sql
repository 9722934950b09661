-- Which server has a partition of usage.events, where several share them. The same on each of them; empty on one alone.

CREATE TABLE IF NOT EXISTS partition_shards
(
    kafka_partition UInt16,
    shard UInt16 COMMENT 'the server that has all rows of the partition, by its place in USAGE_CLICKHOUSE_SHARDS, from 1',
    recorded_on UInt16 COMMENT 'the server that this row lies on, likewise',
    moves UInt32 COMMENT 'how often the partition was moved: the row with the most is in force'
)
ENGINE = ReplacingMergeTree(moves)
ORDER BY kafka_partition
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
COMMENT 'Which server of several has a partition; read with FINAL';
