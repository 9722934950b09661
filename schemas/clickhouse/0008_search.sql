-- A search for an event's id without its customer: a row's block is read only if it may have the identity. All versions of
-- a row have the same identity, so FINAL sees all of them or none.

ALTER TABLE usage_events ADD INDEX IF NOT EXISTS identity_bloom identity TYPE bloom_filter(0.01) GRANULARITY 1;

ALTER TABLE usage_events MATERIALIZE INDEX identity_bloom;
