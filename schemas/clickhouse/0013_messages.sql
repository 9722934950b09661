-- An event without an id is known by its message: by a hash of all that the message says, by when the gateway took it and
-- by its index in it. A message that lies in the log twice (a client library sent it again under a new epoch, a mirror)
-- counts once. Before, such an event was known by its place in the log; what was stored so stays so.

ALTER TABLE usage_batches_in ADD COLUMN IF NOT EXISTS message_hash UInt64 COMMENT 'of the whole message; 0: the sink is of an older version, and events without ids are known by their place';

ALTER TABLE usage_events ADD COLUMN IF NOT EXISTS message_hash UInt64 COMMENT 'of the message, where identity is empty; 0: the place is the identity',
    MODIFY ORDER BY (organization_id, customer_id, event_name, identity, position, message_hash);

ALTER TABLE usage_events MODIFY COLUMN position COMMENT 'where identity is empty: received_at in µs << 10 | index, or, where message_hash is 0, epoch << 54 | offset << 10 | index; else 0';

ALTER TABLE usage_accepted MODIFY COLUMN identity_hash COMMENT 'cityHash64(organization_id, customer_id, event_name, identity, bitXor(position, message_hash))';

ALTER TABLE ingest_batches ADD COLUMN IF NOT EXISTS by_message Bool COMMENT 'its events without ids are known by the message, not by their place';

-- Below these offsets messages were stored by place, so what is read again there is stored so again, or it would count twice.
CREATE MATERIALIZED VIEW IF NOT EXISTS stored_by_place
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (kafka_epoch, kafka_partition)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1
POPULATE
AS SELECT kafka_epoch, kafka_partition, max(ingest_batches.next_offset) AS next_offset
FROM ingest_batches
WHERE events > 0 AND NOT by_message
GROUP BY kafka_epoch, kafka_partition;

ALTER TABLE usage_to_events MODIFY QUERY
WITH bitOr(bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)), toUInt64(place - 1)) AS order_in_log
SELECT
    organization_of AS organization_id,
    customer_of AS customer_id,
    name_of AS event_name,
    identity_of AS identity,
    multiIf(
        identity_of != '', 0,
        known_by = 0, order_in_log,
        bitOr(bitShiftLeft(toUInt64(toUnixTimestamp64Micro(received_at)), 10), toUInt64(place - 1))
    ) AS position,
    timestamp_of AS timestamp,
    value_of AS value,
    properties_of AS properties,
    received_at,
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    place - 1 AS kafka_index,
    bitNot(order_in_log) AS version,
    if(identity_of = '', known_by, 0) AS message_hash
FROM
(
    -- An array joined under the name of an output column would resolve in circles: they get names of their own.
    SELECT
        kafka_epoch,
        kafka_partition,
        kafka_offset,
        received_at,
        if(
            arrayExists(
                stored -> stored.1 = kafka_epoch AND stored.2 = kafka_partition AND kafka_offset < stored.3,
                (SELECT groupArray((kafka_epoch, kafka_partition, next_offset)) FROM stored_by_place)
            ),
            0, message_hash
        ) AS known_by,
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

ALTER TABLE usage_to_accepted MODIFY QUERY
WITH
    bitOr(bitOr(bitShiftLeft(toUInt64(kafka_epoch), 54), bitShiftLeft(toUInt64(kafka_offset), 10)), toUInt64(place - 1)) AS order_in_log,
    multiIf(
        identity_of != '', 0,
        known_by = 0, order_in_log,
        bitXor(bitOr(bitShiftLeft(toUInt64(toUnixTimestamp64Micro(received_at)), 10), toUInt64(place - 1)), known_by)
    ) AS known_as
SELECT
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    place - 1 AS kafka_index,
    organization_of AS organization_id,
    cityHash64(organization_of, customer_of, name_of, identity_of, known_as) AS identity_hash,
    value_of AS value
FROM
(
    SELECT
        kafka_epoch,
        kafka_partition,
        kafka_offset,
        received_at,
        if(
            arrayExists(
                stored -> stored.1 = kafka_epoch AND stored.2 = kafka_partition AND kafka_offset < stored.3,
                (SELECT groupArray((kafka_epoch, kafka_partition, next_offset)) FROM stored_by_place)
            ),
            0, message_hash
        ) AS known_by,
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

ALTER TABLE usage_to_batches MODIFY QUERY
SELECT
    kafka_epoch,
    kafka_partition,
    kafka_offset,
    kafka_offset + 1 AS next_offset,
    batch_id,
    received_at,
    now64(6, 'UTC') AS stored_at,
    length(customer_id) AS events,
    arraySum(x -> ifNull(x, 0::Decimal(38, 9)), value) AS value_sum,
    message_hash != 0 AND NOT arrayExists(
        stored -> stored.1 = kafka_epoch AND stored.2 = kafka_partition AND kafka_offset < stored.3,
        (SELECT groupArray((kafka_epoch, kafka_partition, next_offset)) FROM stored_by_place)
    ) AS by_message
FROM usage_batches_in;
